"""What a study must refuse, each with its code, place, rule and fix; and what it must not refuse."""

import gzip
import json
import struct
import time
import traceback
from collections import Counter

import nibabel as nib
import numpy as np
import pytest

from kconn.errors import InputError
from kconn.io import nifti, tables

pytestmark = pytest.mark.faults("bad input")

WHERE = "sub-01/ses-1/run-1"
SHAPE = (5, 4, 3, 6)
DATA = np.random.default_rng(11).integers(0, 1000, SHAPE).astype(np.int16)
AFFINE = np.diag([3.0, 3.0, 4.0, 1.0])
AFFINE[:3, 3] = [-20, -30, 10]


def header_of(header_class=nib.Nifti1Header, **fields):
    """Return a good header, with fields overwritten without any check."""
    header = header_class(endianness="<")
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    header.set_qform(AFFINE, 1)
    header.set_sform(AFFINE, 1)
    header.set_xyzt_units("mm", "sec")
    header["pixdim"][4] = 2.0
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["magic"] = b"n+1" if header_class is nib.Nifti1Header else b"n+2"
    header["vox_offset"] = header.single_vox_offset
    for name, value in fields.items():
        if isinstance(value, dict):
            for index, item in value.items():
                header.structarr[name][index] = item
        else:
            header.structarr[name] = value
    return header.binaryblock


def image_of(header_class=nib.Nifti1Header, **fields):
    return header_of(header_class, **fields) + b"\0" * 4 + DATA.tobytes(order="F")


def nifti2_of(**fields):
    return image_of(nib.Nifti2Header, **fields)


def packed(raw):
    return gzip.compress(raw, mtime=0)


def flipped(raw, position):
    raw = bytearray(raw)
    raw[position] ^= 0x10
    return bytes(raw)


GOOD = image_of()
NO_QFORM, NO_SFORM = {"qform_code": 0}, {"sform_code": 0}

#: name -> (file name, bytes, expected code)
BAD_IMAGES = {
    "empty file": ("b.nii", b"", "E-NIFTI"),
    "empty gzip": ("b.nii.gz", b"", "E-GZIP"),
    "gzip of nothing": ("b.nii.gz", packed(b""), "E-NIFTI"),
    "text": ("b.nii", b"not an image, just some words\n" * 50, "E-NIFTI"),
    "text named gz": ("b.nii.gz", b"not an image, just some words\n" * 50, "E-GZIP"),
    "plain named gz": ("b.nii.gz", GOOD, "E-GZIP"),
    "gzip named plain": ("b.nii", packed(GOOD), "E-GZIP"),
    "gzip with unknown method": ("b.nii.gz", packed(GOOD)[:2] + b"\x07" + packed(GOOD)[3:], "E-GZIP"),
    "gzip with reserved flags": ("b.nii.gz", packed(GOOD)[:3] + b"\x80" + packed(GOOD)[4:], "E-GZIP"),
    "truncated header": ("b.nii", GOOD[:200], "E-NIFTI"),
    "truncated header in gzip": ("b.nii.gz", packed(GOOD[:200]), "E-NIFTI"),
    "wrong sizeof_hdr": ("b.nii", image_of(sizeof_hdr=349), "E-NIFTI"),
    "bad magic": ("b.nii", image_of(magic=b"xx1"), "E-NIFTI"),
    "magic of a pair": ("b.nii", image_of(magic=b"ni1"), "E-NIFTI"),
    "Analyze": ("b.nii", image_of(magic=b""), "E-NIFTI"),
    "NIfTI-2 with bad magic": ("b.nii", nifti2_of(magic=b"n+1"), "E-NIFTI"),
    "vox_offset 0": ("b.nii", image_of(vox_offset=0), "E-NIFTI"),
    "vox_offset NaN": ("b.nii", image_of(vox_offset=np.nan), "E-NIFTI"),
    "vox_offset broken": ("b.nii", image_of(vox_offset=352.5), "E-NIFTI"),
    "vox_offset beyond the end": ("b.nii", image_of(vox_offset=1e9), "E-NIFTI-SIZE"),
    "negative dims": ("b.nii", image_of(dim={1: -5}), "E-NIFTI-DIMS"),
    "all dims zero": ("b.nii", image_of(dim=0), "E-NIFTI-DIMS"),
    "a dim of zero": ("b.nii", image_of(dim={4: 0}), "E-NIFTI-DIMS"),
    "nine dims": ("b.nii", image_of(dim={0: 9}), "E-NIFTI-DIMS"),
    "3-D": ("b.nii", image_of(dim={0: 3}), "E-NIFTI-DIMS"),
    "one frame": ("b.nii", image_of(dim={4: 1}), "E-NIFTI-DIMS"),
    "5-D": ("b.nii", image_of(dim={0: 5, 4: 3, 5: 2}), "E-NIFTI-DIMS"),
    "6-D as CIFTI": ("b.nii", image_of(dim=[6, 1, 1, 1, 1, 60, 6, 1]), "E-NIFTI-DIMS"),
    "fewer frames than stored": ("b.nii", image_of(dim={4: 5}), "E-NIFTI-SIZE"),
    "fewer frames in gzip": ("b.nii.gz", packed(image_of(dim={4: 5})), "E-NIFTI-SIZE"),
    "more frames than stored": ("b.nii", image_of(dim={4: 7}), "E-NIFTI-SIZE"),
    "more frames in gzip": ("b.nii.gz", packed(image_of(dim={4: 7})), "E-NIFTI-SIZE"),
    "truncated data": ("b.nii", GOOD[:-100], "E-NIFTI-SIZE"),
    "truncated data in whole gzip": ("b.nii.gz", packed(GOOD[:-100]), "E-NIFTI-SIZE"),
    "header bomb": ("b.nii", image_of(dim=[4, 32767, 32767, 32767, 32767, 1, 1, 1]), "E-NIFTI-SIZE"),
    "header bomb in gzip": ("b.nii.gz", packed(image_of(dim=[4, 32767, 32767, 32767, 32767, 1, 1, 1])), "E-NIFTI-SIZE"),
    "NIfTI-2 bomb": ("b.nii", nifti2_of(dim=[4, 2**60, 2**60, 2**60, 2**60, 1, 1, 1]), "E-NIFTI-SIZE"),
    "gzip bomb": ("b.nii.gz", packed(GOOD + b"\0" * 2**24), "E-NIFTI-SIZE"),
    "cut gzip": ("b.nii.gz", packed(GOOD)[:-200], "E-GZIP"),
    "cut gzip trailer": ("b.nii.gz", packed(GOOD)[:-8], "E-GZIP"),
    "half a gzip trailer": ("b.nii.gz", packed(GOOD)[:-4], "E-GZIP"),
    "bad CRC": ("b.nii.gz", flipped(packed(GOOD), -6), "E-GZIP"),
    "bad length": ("b.nii.gz", flipped(packed(GOOD), -2), "E-GZIP"),
    "flipped bit": ("b.nii.gz", flipped(packed(GOOD), 400), "E-GZIP"),
    "garbage after gzip": ("b.nii.gz", packed(GOOD) + b"garbage", "E-GZIP"),
    "a second image behind": ("b.nii.gz", packed(GOOD) * 2, "E-NIFTI-SIZE"),
    "complex": ("b.nii", image_of(datatype=32, bitpix=64), "E-NIFTI-DTYPE"),
    "RGB": ("b.nii", image_of(datatype=128, bitpix=24), "E-NIFTI-DTYPE"),
    "bits": ("b.nii", image_of(datatype=1, bitpix=1), "E-NIFTI-DTYPE"),
    "float128": ("b.nii", image_of(datatype=1536, bitpix=128), "E-NIFTI-DTYPE"),
    "unknown type": ("b.nii", image_of(datatype=0), "E-NIFTI-DTYPE"),
    "type and bits disagree": ("b.nii", image_of(bitpix=32), "E-NIFTI-DTYPE"),
    "infinite slope": ("b.nii", image_of(scl_slope=np.inf), "E-NIFTI-SCALE"),
    "infinite intercept": ("b.nii", image_of(scl_inter=-np.inf), "E-NIFTI-SCALE"),
    "NaN intercept": ("b.nii", image_of(scl_inter=np.nan), "E-NIFTI-SCALE"),
    "NaN affine": ("b.nii", image_of(srow_x=np.nan), "E-AFFINE"),
    "zero affine": ("b.nii", image_of(srow_x=0, srow_y=0, srow_z=0, **NO_QFORM), "E-AFFINE"),
    "singular affine": ("b.nii", image_of(srow_y=[3, 0, 0, 0], **NO_QFORM), "E-AFFINE"),
    "huge affine": ("b.nii", image_of(srow_x=3e38, srow_y=3e38), "E-AFFINE"),
    "quaternion that is no rotation": ("b.nii", image_of(quatern_b=2.0, **NO_SFORM), "E-AFFINE"),
    "NaN quaternion": ("b.nii", image_of(quatern_c=np.nan), "E-AFFINE"),
    "negative voxel size": ("b.nii", image_of(pixdim={1: -3.0}, **NO_SFORM), "E-AFFINE"),
    "positions in metres": ("b.nii", image_of(xyzt_units=9), "E-AFFINE"),
    "both codes 0": ("b.nii", image_of(**NO_QFORM, **NO_SFORM), "E-ORIENT"),
    "impossible code": ("b.nii", image_of(qform_code=-3), "E-ORIENT"),
    "left and right swapped": ("b.nii", image_of(srow_x=[-3, 0, 0, 20]), "E-ORIENT"),
    "handedness flipped": ("b.nii", image_of(pixdim={0: -1.0}), "E-ORIENT"),
    "forms apart": ("b.nii", image_of(srow_x=[3, 0, 0, -10]), "E-ORIENT"),
    "TR 0": ("b.nii", image_of(pixdim={4: 0.0}), "E-TR-RANGE"),
    "TR NaN": ("b.nii", image_of(pixdim={4: np.nan}), "E-TR-RANGE"),
    "TR infinite": ("b.nii", image_of(pixdim={4: np.inf}), "E-TR-RANGE"),
    "TR negative": ("b.nii", image_of(pixdim={4: -2.0}), "E-TR-RANGE"),
    "TR 2000 s": ("b.nii", image_of(pixdim={4: 2000.0}), "E-TR-RANGE"),
    "TR 2 ms": ("b.nii", image_of(xyzt_units=18), "E-TR-RANGE"),
    "no unit of time": ("b.nii", image_of(xyzt_units=2), "E-TR-UNITS"),
    "time in Hz": ("b.nii", image_of(xyzt_units=34), "E-TR-UNITS"),
}

SERIES = "a\tb\tc\n1\t2\t3\n4\t5\t6\n7\t8\t9\n"


def read_series(path):
    return tables.read_timeseries(path, orientation="time-by-node", where=WHERE)


def read_three_confounds(path):
    return tables.read_confounds(path, n_time=3, where=WHERE)


def read_three_numbers(path):
    return tables.read_vector(path, n_time=3, where=WHERE)


def read_people(path):
    return tables.read_participants(path, where=WHERE)


def read_numbered_people(path):
    return tables.read_participants(path, id_format="{:03d}", where=WHERE)


def read_visits(path):
    return tables.read_sessions(path, where=WHERE)


def read_sidecar(path):
    return nifti.read_sidecar_t_r(path, where=WHERE)


def npy(values, *, cut=0):
    raw = np.lib.format.magic(1, 0)
    text = repr({"descr": values.dtype.str, "fortran_order": False, "shape": values.shape}).encode()
    text += b" " * (118 - len(text) - 1) + b"\n"
    raw += struct.pack("<H", len(text)) + text + values.tobytes()
    return raw[: len(raw) - cut]


#: name -> (reader, file name, content, expected code)
BAD_TABLES = {
    "empty": (read_series, "t.tsv", "", "E-TABLE"),
    "blanks": (read_series, "t.tsv", "\n \n", "E-TABLE"),
    "header alone": (read_series, "t.tsv", "a\tb\n", "E-TABLE-SHAPE"),
    "one frame": (read_series, "t.tsv", "a\tb\n1\t2\n", "E-TABLE-SHAPE"),
    "ragged": (read_series, "t.tsv", SERIES + "1\t2\n", "E-TABLE-SHAPE"),
    "blank line inside": (read_series, "t.tsv", SERIES + "\n1\t2\t3\n", "E-TABLE-SHAPE"),
    "word in a cell": (read_series, "t.tsv", SERIES.replace("5", "five"), "E-TABLE"),
    "decimal comma": (read_series, "t.tsv", "a\tb\n1,5\t2\n3\t4\n", "E-TABLE"),
    "digits with underscore": (read_series, "t.tsv", SERIES.replace("5", "1_0"), "E-TABLE"),
    "empty cell": (read_series, "t.tsv", SERIES.replace("5", ""), "E-TABLE-NAN"),
    "NaN": (read_series, "t.tsv", SERIES.replace("5", "nan"), "E-TABLE-NAN"),
    "n/a": (read_series, "t.tsv", SERIES.replace("5", "n/a"), "E-TABLE-NAN"),
    "infinity": (read_series, "t.tsv", SERIES.replace("5", "-inf"), "E-TABLE-NAN"),
    "pandas index": (read_series, "t.csv", ",a,b\n0,1,2\n1,3,4\n", "E-TABLE"),
    "row names": (read_series, "t.tsv", SERIES.replace("\n4", "\nx"), "E-TABLE"),
    "two delimiters": (read_series, "t.txt", "1,2\t3\n4,5\t6\n", "E-TABLE"),
    "open quote": (read_series, "t.csv", 'a,"b\n1,2\n3,4\n', "E-TABLE"),
    "Latin-1": (read_series, "t.tsv", SERIES.replace("a", "\u00e4").encode("latin-1"), "E-TABLE"),
    "zero bytes": (read_series, "t.tsv", SERIES.replace("5", "\0"), "E-TABLE"),
    "damaged gzip": (read_series, "t.tsv.gz", packed(SERIES.encode())[:-3], "E-GZIP"),
    "npy of objects": (read_series, "t.npy", b"\x93NUMPY\x01\x00garbage", "E-TABLE"),
    "npy of three dimensions": (read_series, "t.npy", npy(np.ones((2, 2, 2))), "E-TABLE"),
    "npy of complex": (read_series, "t.npy", npy(np.ones((2, 2), complex)), "E-TABLE"),
    "npy cut": (read_series, "t.npy", npy(np.ones((9, 9)), cut=8), "E-TABLE"),
    "npy with NaN": (read_series, "t.npy", npy(np.full((9, 9), np.nan)), "E-TABLE-NAN"),
    "npy empty": (read_series, "t.npy", b"", "E-TABLE"),
    "confounds one row short": (read_three_confounds, "c.tsv", "a\tb\n1\t2\n3\t4\n", "E-CONFOUND-ROWS"),
    "confounds one row more": (read_three_confounds, "c.tsv", SERIES + "1\t2\t3\n", "E-CONFOUND-ROWS"),
    "confounds infinite": (read_three_confounds, "c.tsv", SERIES.replace("5", "inf"), "E-CONFOUND-NAN"),
    "confounds with words": (read_three_confounds, "c.tsv", SERIES.replace("5", "yes"), "E-TABLE"),
    "confounds twice": (read_three_confounds, "c.tsv", SERIES.replace("b", "a"), "E-TABLE"),
    "confounds nameless": (read_three_confounds, "c.tsv", SERIES.replace("b", ""), "E-TABLE"),
    "vector of another length": (read_three_numbers, "f.txt", "1\n2\n3\n4\n", "E-CONFOUND-ROWS"),
    "vector of two columns": (read_three_numbers, "f.txt", "1 2\n3 4\n5 6\n", "E-TABLE-SHAPE"),
    "vector with NaN": (read_three_numbers, "f.txt", "1\n2\nnan\n", "E-TABLE-NAN"),
    "vector infinite": (read_three_numbers, "f.txt", "inf\n2\n3\n", "E-TABLE-NAN"),
    "no id column": (read_people, "p.tsv", "subject\tage\n01\t30\n", "E-TABLE-SHAPE"),
    "no people": (read_people, "p.tsv", "participant_id\tage\n", "E-TABLE-SHAPE"),
    "duplicate id": (read_people, "p.tsv", "participant_id\tage\nsub-01\t30\n01\t31\n", "E-ID-DUPLICATE"),
    "id in two cases": (read_people, "p.tsv", "participant_id\tage\nA1\t30\na1\t31\n", "E-ID-DUPLICATE"),
    "path as id": (read_people, "p.tsv", "participant_id\tage\n../../etc\t30\n", "E-ID"),
    "accent in id": (read_people, "p.tsv", "participant_id\tage\nsub-é\t30\n", "E-ID"),
    "empty id": (read_people, "p.tsv", "participant_id\tage\n\t30\n", "E-ID"),
    "endless id": (read_people, "p.tsv", f"participant_id\tage\n{'1' * 65}\t30\n", "E-ID"),
    "infinite covariate": (read_people, "p.tsv", "participant_id\tage\n01\tinf\n", "E-TABLE-NAN"),
    "word for a number": (read_numbered_people, "p.tsv", "participant_id\tage\nfour\t30\n", "E-ID"),
    "session twice": (
        read_visits,
        "s.tsv",
        "participant_id\tsession_id\n01\t1\nsub-01\tses-1\n",
        "E-ID-DUPLICATE",
    ),
    "subject in two cases": (read_visits, "s.tsv", "participant_id\tsession_id\nA\t1\na\t2\n", "E-ID-DUPLICATE"),
    "no session column": (read_visits, "s.tsv", "participant_id\tvisit\n01\t1\n", "E-TABLE-SHAPE"),
    "sidecar no JSON": (read_sidecar, "b.json", "{", "E-SIDECAR"),
    "sidecar empty": (read_sidecar, "b.json", "", "E-SIDECAR"),
    "sidecar a list": (read_sidecar, "b.json", "[2.0]", "E-SIDECAR"),
    "sidecar with words": (read_sidecar, "b.json", '{"RepetitionTime": "2"}', "E-SIDECAR"),
    "sidecar true": (read_sidecar, "b.json", '{"RepetitionTime": true}', "E-SIDECAR"),
    "sidecar too deep": (read_sidecar, "b.json", "[" * 100_000, "E-SIDECAR"),
    "sidecar of a huge number": (read_sidecar, "b.json", '{"RepetitionTime": 1' + "0" * 400 + "}", "E-SIDECAR"),
}


def refusal(function, *args, **kwargs):
    """Return the error, after checking that it tells code, place, rule and fix, and hides what it came from."""
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    error = caught.value
    assert WHERE in error.where
    assert error.problem
    assert error.rule
    assert error.fix
    assert error.__suppress_context__ or error.__context__ is None
    return error


def read_bold(path, **kwargs):
    header = nifti.read_header(path, where=WHERE, **kwargs)
    blocks = nifti.stream_frames(path, header, frames_per_block=4, where=WHERE)
    return header, np.concatenate([nifti.scale_block(block, header) for block in blocks])


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_read_header__refuses(tmp_path, name, count):
    file_name, content, code = BAD_IMAGES[name]
    path = tmp_path / file_name
    path.write_bytes(content)
    # A look at header and length cannot tell these; reading the data does.
    reader = read_bold if name in {"flipped bit", "bad CRC", "a second image behind"} else nifti.read_header
    kwargs = {} if reader is read_bold else {"where": WHERE}
    assert refusal(reader, path, **kwargs).code == code
    count(refused=1)


@pytest.mark.parametrize("name", BAD_TABLES)
def test_read_table__refuses(tmp_path, name, count):
    reader, file_name, content, code = BAD_TABLES[name]
    (tmp_path / file_name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refusal(reader, tmp_path / file_name).code == code
    count(refused=1)


@pytest.mark.parametrize(
    "reader", [read_bold, read_series, read_three_confounds, read_three_numbers, read_people, read_sidecar]
)
@pytest.mark.parametrize("kind", ["absent", "directory", "broken link", "nul in name", "name too long"])
def test_every_reader__refuses_what_is_no_file(tmp_path, reader, kind, count):
    path = tmp_path / {"nul in name": "a\0b", "name too long": "a" * 300}.get(kind, "input.nii")
    if kind == "directory":
        path.mkdir()
    if kind == "broken link":
        path.symlink_to(tmp_path / "gone")
    error = refusal(reader, path)
    assert error.code == "E-FILE-MISSING"
    assert str(tmp_path) not in str(error)
    count(refused=1)


def write_volume(path, values, *, affine=AFFINE):
    nib.save(nib.Nifti1Image(np.asarray(values), affine), path)
    return path


def test_read_mask__refuses(tmp_path):
    grid = {"grid_shape": SHAPE[:3], "affine": AFFINE, "where": WHERE}
    moved = AFFINE.copy()
    moved[0, 3] += 1
    ones, path = np.ones(SHAPE[:3], np.uint8), tmp_path / "m.nii.gz"
    nan = np.ones(SHAPE[:3], np.float32)
    nan[0, 0, 0] = np.nan
    cases = [
        (ones[:-1], AFFINE, "E-GRID"),
        (ones, moved, "E-GRID"),
        (ones, AFFINE * [-1, 1, 1, 1], "E-GRID"),
        (ones * 0, AFFINE, "E-MASK-EMPTY"),
        (np.arange(60, dtype=np.int16).reshape(SHAPE[:3]), AFFINE, "E-MASK"),
        (nan, AFFINE, "E-MASK"),
        (np.ones((*SHAPE[:3], 2), np.uint8), AFFINE, "E-NIFTI-DIMS"),
        (np.ones(SHAPE[:2], np.uint8), AFFINE, "E-NIFTI-DIMS"),
    ]
    for values, affine, code in cases:
        write_volume(path, values, affine=affine)
        assert refusal(nifti.read_mask, path, **grid).code == code
    path.write_bytes(flipped(write_volume(path, ones).read_bytes(), -6))
    assert refusal(nifti.read_mask, path, **grid).code == "E-GZIP"
    path.write_bytes(packed(image_of(dim={0: 3, 3: 9})))
    assert refusal(nifti.read_mask, path, **grid).code == "E-NIFTI-SIZE"


def test_read_labels__refuses(tmp_path):
    path, labels = tmp_path / "a.nii.gz", np.ones(SHAPE[:3], np.float32)
    for value in (0.5, -1, np.nan, np.inf, 1e12):
        labels[1, 1, 1] = value
        write_volume(path, labels)
        assert refusal(nifti.read_labels, path, where=WHERE).code == "E-ATLAS"
    write_volume(path, labels * 0 + 0.0 if np.isfinite(labels).all() else np.zeros(SHAPE[:3], np.float32))
    assert refusal(nifti.read_labels, path, where=WHERE).code == "E-ATLAS"
    write_volume(path, np.zeros((*SHAPE[:3], 3), np.int16))
    assert refusal(nifti.read_labels, path, where=WHERE).code == "E-NIFTI-DIMS"


def test_refusals__count():
    assert len(BAD_IMAGES) + len(BAD_TABLES) >= 60


#: name -> (file name, bytes, arguments of read_header)
GOOD_IMAGES = {
    "plain": ("b.nii", GOOD, {}),
    "gzip": ("b.nii.gz", packed(GOOD), {}),
    "gzip with name and time": ("b.nii.gz", gzip.compress(GOOD, mtime=1e9), {}),
    "gzip in members": ("b.nii.gz", packed(GOOD[:999]) + packed(GOOD[999:]), {}),
    "gzip padded with zeros": ("b.nii.gz", packed(GOOD) + b"\0" * 512, {}),
    "stored gzip": ("b.nii.gz", gzip.compress(GOOD, 0), {}),
    "ms": ("b.nii", image_of(xyzt_units=18, pixdim={4: 2000.0}), {}),
    "us": ("b.nii", image_of(xyzt_units=26, pixdim={4: 2e6}), {}),
    "no unit, TR stated": ("b.nii", image_of(xyzt_units=2), {"t_r": 2.0}),
    "no unit, sidecar": ("b.nii", image_of(xyzt_units=2), {"sidecar_t_r": 2.0}),
    "TR 0, sidecar": ("b.nii", image_of(pixdim={4: 0.0}), {"sidecar_t_r": 2.0}),
    "TR near the sidecar": ("b.nii", image_of(pixdim={4: 2.0005}), {"sidecar_t_r": 2.0}),
    "TR 0.2": ("b.nii", image_of(pixdim={4: 0.2}), {}),
    "TR 10": ("b.nii", image_of(pixdim={4: 10.0}), {}),
    "slope 0": ("b.nii", image_of(scl_slope=0, scl_inter=7), {}),
    "slope NaN": ("b.nii", image_of(scl_slope=np.nan, scl_inter=np.nan), {}),
    "slope and intercept": ("b.nii", image_of(scl_slope=0.25, scl_inter=-3), {}),
    "no unit of length": ("b.nii", image_of(xyzt_units=8), {}),
    "qform alone": ("b.nii", image_of(sform_code=0), {}),
    "sform alone": ("b.nii", image_of(qform_code=0, quatern_b=9.0), {}),
    "handedness 0": ("b.nii", image_of(pixdim={0: 0.0}), {}),
    "forms a little apart": ("b.nii", image_of(srow_x=[3, 0.001, 0, -20.01]), {}),
    "5-D with one": ("b.nii", image_of(dim={0: 5}), {}),
    "extension": (
        "b.nii",
        header_of(vox_offset=384) + b"\1\0\0\0" + b"\x20\0\0\0\6\0\0\0" + b"x" * 24 + GOOD[352:],
        {},
    ),
    "NIfTI-2": ("b.nii", nifti2_of(), {}),
    "NIfTI-2 in gzip": ("b.nii.gz", packed(nifti2_of()), {}),
    "padding behind": ("b.nii", GOOD + b"\0" * 100, {}),
}


@pytest.mark.parametrize("name", GOOD_IMAGES)
def test_read_header__raises_no_false_alarm(tmp_path, name, count):
    file_name, content, kwargs = GOOD_IMAGES[name]
    path = tmp_path / file_name
    path.write_bytes(content)
    header, frames = read_bold(path, **kwargs)
    expected = np.asarray(nib.load(path).dataobj).reshape(-1, SHAPE[3], order="F").T
    np.testing.assert_allclose(frames, expected, rtol=3e-7)
    assert header.t_r == kwargs.get("t_r", kwargs.get("sidecar_t_r", pytest.approx(2.0, abs=10)))
    assert len(GOOD_IMAGES) >= 20
    count(good_accepted=1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_read_header__raises_no_false_alarm_for_any_type(tmp_path, code, order, count):
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(code).newbyteorder(order))
    header.set_xyzt_units("mm", "sec")
    image = nib.Nifti1Image((DATA % 100).astype(code), AFFINE, header)
    image.header["pixdim"][4] = 2.0
    nib.save(image, tmp_path / "b.nii.gz")
    header, frames = read_bold(tmp_path / "b.nii.gz")
    assert header.dtype == np.dtype(code).newbyteorder(order).str
    np.testing.assert_array_equal(frames, (DATA % 100).reshape(-1, SHAPE[3], order="F").T)
    count(good_accepted=1)


@pytest.mark.faults("patients")
def test_errors__carry_nothing_personal(tmp_path):
    marker = "MARKER"
    texts = {name: marker.encode() for name in ("descrip", "aux_file", "intent_name", "db_name")}
    folder = tmp_path / marker
    folder.mkdir()
    path = folder / f"{marker}.nii"
    breaking = [
        {"magic": b"xx1"},
        {"dim": 0},
        {"datatype": 32},
        {"srow_x": np.nan},
        {"qform_code": -3},
        {"dim": {4: 5}},
    ]
    breaking += [{"scl_slope": np.inf}, {"pixdim": {4: 0.0}}, {"xyzt_units": 2}, {"vox_offset": 0}]
    for fields in breaking:
        path.write_bytes(image_of(**texts, **fields))
        assert marker in path.read_bytes().decode("latin-1")
        error = refusal(nifti.read_header, path, where=WHERE)
        assert marker not in "".join(traceback.format_exception(type(error), error, None)) + repr(error.args)
    path.write_bytes(image_of(**texts))
    assert marker not in repr(nifti.read_header(path, where=WHERE))
    sidecar = folder / f"{marker}.json"
    for value in ("2", [marker]):
        sidecar.write_text(json.dumps({"PatientName": marker, "RepetitionTime": value}))
        assert marker not in str(refusal(read_sidecar, sidecar))


def damage(raw, rng):
    raw = bytearray(raw)
    kind = rng.integers(4)
    position = int(rng.integers(len(raw)))
    if kind == 0:
        return bytes(raw[:position])
    if kind == 1:
        raw[position : position + int(rng.integers(1, 9))] = rng.bytes(int(rng.integers(0, 9)))
        return bytes(raw)
    for _ in range(int(kind)):
        raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
    return bytes(raw)


def fuzz(folder, *, seed, n_trial=np.inf, seconds=np.inf):
    """Damage streams, headers and tables; return how each trial ended."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 30000, SHAPE).astype(np.int16)
    good = {
        "stream": packed(header_of() + b"\0" * 4 + noise.tobytes(order="F")),
        "header": GOOD,
        "table": SERIES.encode(),
    }
    expected = noise.reshape(-1, SHAPE[3], order="F").T
    path = {"stream": folder / "b.nii.gz", "header": folder / "b.nii", "table": folder / "t.tsv"}
    endings = Counter()
    stop = time.monotonic() + seconds
    while endings.total() < n_trial and time.monotonic() < stop:
        target = ("stream", "header", "table")[endings.total() % 3]
        if target == "header":
            content = damage(good["header"][:348], rng)[:348].ljust(348, b"\0") + GOOD[348:]
        else:
            content = damage(good[target], rng)
        path[target].write_bytes(content)
        try:
            if target == "table":
                read_series(path[target])
                outcome = "accepted"
            else:
                _, frames = read_bold(path[target])
                outcome = "accepted" if target == "header" or np.array_equal(frames, expected) else "wrong"
        except InputError as error:
            outcome = "refused" if error.rule and error.fix else "without a way out"
        endings[target, outcome] += 1
    return endings


def check_endings(endings, record):
    for (target, outcome), n in sorted(endings.items()):
        record(f"{target} {outcome}", n)
    record("wrong data from a stream", endings["stream", "wrong"])
    assert {outcome for _, outcome in endings} <= {"refused", "accepted"}
    # Nearly every damage of a stream is one of its content; the few that are not hit unused bits of gzip's header.
    assert endings["stream", "refused"] > 20 * endings["stream", "accepted"]


@pytest.mark.faults("fuzz")
def test_readers__survive_damage(tmp_path, record_property):
    check_endings(fuzz(tmp_path, seed=20, n_trial=600), record_property)


@pytest.mark.slow
@pytest.mark.faults("fuzz")
def test_readers__survive_a_minute_of_damage(tmp_path, record_property):
    check_endings(fuzz(tmp_path, seed=21, seconds=60), record_property)
