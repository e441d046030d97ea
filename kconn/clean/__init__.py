"""From preprocessed runs to clean ones: frames, confounds, filters, quality. Dataset in, new Dataset out."""
