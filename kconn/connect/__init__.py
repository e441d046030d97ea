"""From clean runs to connections: nodes, series, netmats, maps, components. Dataset in, new Dataset out."""
