"""Tables of numbers."""

from __future__ import annotations

import numpy as np
import pytest

from brasa import data


@pytest.fixture
def table(tmp_path):
    """Return a function that writes a file and gives its path."""

    def write(content: str | bytes):
        path = tmp_path / "table.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def test_names_of_classes_are_numbered_in_order(table):
    ds = data.csv(table("a,b,kind\n1,2.5,wren\n-3,4e2,robin\n5,6,wren\n"), "kind")
    x, y = ds.arrays
    np.testing.assert_array_equal(x, np.array([[1, 2.5], [-3, 400], [5, 6]], np.float32))
    np.testing.assert_array_equal(y, [1, 0, 1])
    assert ds.classes == ("robin", "wren")
    assert (x.dtype, y.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize(
    ("texts", "dtype"),
    [
        (["3", "-1", " 7 "], np.int64),
        (["3", "1.5", "7"], np.float32),
        (["3", str(2**70), "7"], np.float32),
    ],
)
def test_targets_that_are_numbers(table, texts, dtype):
    ds = data.csv(table("a,y\n" + "".join(f"0,{text}\n" for text in texts)), "y")
    np.testing.assert_array_equal(ds.targets, np.array([float(t) for t in texts], dtype))
    assert ds.targets.dtype == dtype
    assert ds.classes is None


def test_columns_can_be_chosen_and_ordered(table):
    path = table("id,a,b,y\nx1,1,2,0\nx2,3,4,1\n")
    np.testing.assert_array_equal(data.csv(path, "y", columns=["b", "a"]).arrays[0], [[2, 1], [4, 3]])
    with pytest.raises(ValueError, match=r"line 2: column 'id': 'x1' is not a number.*columns="):
        data.csv(path, "y")


def test_quotes_blank_lines_marks_and_delimiters(table):
    content = b'\xef\xbb\xbf"first; one";y\r\n"1";"a;b"\r\n\r\n2;"c\nd"\r\n'
    ds = data.csv(table(content), "y", delimiter=";")
    np.testing.assert_array_equal(ds.arrays[0], [[1], [2]])
    assert ds.classes == ("a;b", "c\nd")


def test_a_missing_file_says_what_is_expected(tmp_path):
    with pytest.raises(data.DatasetNotFoundError, match=r"no file .*none.csv.*first line names"):
        data.csv(tmp_path / "none.csv", "y")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column 'y' in the header"),
        ("a,b\n1,2\n", r"no column 'y' in the header \(a, b\)"),
        ("a,y,y\n1,2,3\n", "more than one column 'y'"),
        ("a,a,y\n1,2,3\n", "more than one column 'a'"),
        ("y\n1\n", "no column to learn from"),
        ("a,y\n", "no rows below the header"),
        ("a,y\n1,2\n1\n", "line 3: 1 fields, but the header has 2"),
        ("a,y\n1,2\n1,2,3\n", "line 3: 3 fields"),
        ("a,y\n1,2\n,2\n", "line 3: column 'a': '' is not a number"),
        ("a,y\n1e39,2\n", "a number is too large for float32"),
        ("a,y\n1,1e39\n", "a number is too large for float32"),
        ('a,y\n1,"2\n', "line 2: unexpected end"),
        (b"a,y\n1,\xff\n", "not text in UTF-8"),
        ("a,y\n1," + "x" * 200_000 + "\n", "line 2: field larger than field limit"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_tables_are_named(table, content, message):
    with pytest.raises(ValueError, match=f"table.csv: {message}"):
        data.csv(table(content), "y")


def test_the_target_is_no_input(table):
    with pytest.raises(ValueError, match="columns must not name the target 'y'"):
        data.csv(table("a,y\n1,2\n"), "y", columns=["a", "y"])
