import csv
import gzip
import io

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from components.core.errors import InputError
from components.core.tables import TableFaults, csv_bytes, read_table, read_table_file, unescaped, write_table

COLUMNS = ("id_code", "sirna")


def test_values_stay_text():
    table = read_table(b"id_code,sirna,other\na,NA,1\nb,007,\nc,1e5,x\nd,,nan\n", "t.csv", COLUMNS)
    assert table["sirna"].tolist() == ["NA", "007", "1e5", ""]
    assert table["other"].tolist() == ["1", "", "x", "nan"]


def test_accepts_a_byte_order_mark_crlf_blank_lines_quoted_line_breaks_and_any_order_of_columns():
    table = read_table(b"\xef\xbb\xbfsirna , id_code\r\n\r\n s1 ,a\r\n", "t.csv", COLUMNS)
    assert table.loc[3].to_dict() == {"id_code": "a", "sirna": "s1"}
    table = read_table(b'id_code,sirna\n"a\nb",s\nc,s\n', "t.csv", COLUMNS)
    assert table.index.tolist() == [3, 4]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("first", ["", "sep"])
def test_tables_of_any_countrys_spreadsheet_are_the_same_table(delimiter, encoding, first):
    rows = [["id_code", "dose, µM", "sirna"], ["a", "0,5", "Müller; \t x"], ["b", "1", "s"]]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows(rows)
    content = (f"sep={delimiter}\r\n" if first else "") + text.getvalue()
    table = read_table(content.encode(encoding), "t.csv", COLUMNS)
    assert [list(table.columns), *table.to_numpy().tolist()] == rows
    assert table.index.tolist() == ([3, 4] if first else [2, 3])


@pytest.mark.parametrize("above", ["# map of May\n", "#\n# a, b\n\n", "# by x, y, z, w\n", "# by x, y, z\n", ""])
def test_comments_above_the_header_and_gzip_are_no_part_of_a_table(above: str):
    content = f"{above}id_code,sirna,n\na,s,1\n".encode()
    for each in (content, gzip.compress(content)):
        table = read_table(each, "t.csv", COLUMNS)
        assert table.to_dict("index") == {above.count("\n") + 2: {"id_code": "a", "sirna": "s", "n": "1"}}
        assert list(read_table(each, "t.csv", COLUMNS, records=False).columns) == ["id_code", "sirna", "n"]
    assert list(read_table(b"# n,id_code,sirna\n1,a,s\n", "t.csv", COLUMNS).columns) == ["# n", *COLUMNS]
    assert list(read_table(b"#id_code,sirna\na,s\n", "t.csv", ()).columns) == ["#id_code", "sirna"]


def test_rows_that_differ_in_a_detail_alone_are_one_kind_of_fault():
    table = read_table(b"id_code,sirna\na,x\nb,y\n", "t.csv", COLUMNS)
    faults = TableFaults("t.csv", table)
    faults.add("sirna", table["sirna"] != "", "it differs", table["sirna"].map(lambda text: f"not {text}{text}"))
    ((_, _, places),) = faults.findings()
    assert places == ("t.csv line 2 (a): field sirna is 'x', not xx", "t.csv line 3 (b): field sirna is 'y', not yy")


def test_parquet_has_the_texts_that_its_csv_would_have():
    typed = pd.DataFrame(
        {
            "id_code": ["a", "b"],
            "sirna": [7.0, None],
            "n": [1, 2],
            "dose": [0.5, 2.0],
            "on": [True, None],
            "t": [None, " x"],
        }
    )
    content = io.BytesIO()
    typed.to_parquet(content)
    table = read_table(content.getvalue(), "t.parquet", COLUMNS)
    assert table.to_numpy().tolist() == [["a", "7", "1", "0.5", "True", ""], ["b", "", "2", "2", "", "x"]]
    assert table.index.tolist() == [1, 2]
    with pytest.raises(InputError, match="column well is missing"):
        read_table(content.getvalue(), "t.parquet", ["well"])


def test_a_table_without_rows_has_its_columns():
    table = read_table(b"id_code,sirna\n", "t.csv", COLUMNS)
    assert len(table) == 0
    faults = TableFaults("t.csv", table)
    faults.require(COLUMNS)
    faults.require_unique("id_code")
    assert len(faults.numbers("sirna")) == 0
    faults.check()
    rounded = read_table(b"id_code,p\na,1.0000001\nb,-1e-9\n", "t.csv", ("id_code", "p"))
    assert TableFaults("t.csv", rounded).numbers("p").tolist() == [1.0, 0.0]  # within a rounding error of the bounds


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04\x14\x00", "save the table as CSV"),
        (b"\x1f\x8b\x08\x00", "cannot be unpacked"),
        (b"id_code,sirna\na,b\0\n", "is not text"),
        (b"", "t.csv: is empty"),
        (b"id_code\n", "column sirna is missing"),
        (b"id_code,sirna,sirna\n", "column sirna appears twice"),
        (b"id_code,sirna\na,\x00\n", "t.csv: is not text"),
        (b"PAR1 and nothing else", "t.csv: is not a Parquet table"),
        (b"sep=;\nid_code;sirna\na\n", r"line 3 \(a\): 1 fields"),
        (b'id_code,sirna\na,b\n"c,d\n', "is not a CSV table"),
        (b"id_code,sirna\na,b\nc\nd,e,f\n", r"2 faults: line 3 \(c\): 1 fields, .* has 2 \| line 4"),
    ],
)
def test_rejects_content_that_is_not_a_table(content, words):
    with pytest.raises(InputError, match=words):
        read_table(content, "t.csv", COLUMNS)


def test_rejects_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"absent\.csv: cannot be read"):
        read_table_file(tmp_path / "absent.csv", COLUMNS)


def test_faults_name_file_line_well_and_field_and_the_first_five_of_many_are_listed():
    def message(faults):
        with pytest.raises(InputError) as caught:
            faults.check()
        return str(caught.value)

    faults = TableFaults("t.csv", read_table(b"id_code,sirna\na,s1\nb,s2\n", "t.csv", COLUMNS))
    faults.require_one_of(["sirna"], {"s1"}, "not a treatment")
    assert message(faults) == "t.csv line 3 (b): field sirna is 's2'; not a treatment"

    faults.require_one_of(["id_code"], {"a"}, "not a treatment")
    assert message(faults) == (
        "t.csv: 2 faults: line 3 (b): field sirna is 's2' | line 3 (b): field id_code is 'b'; not a treatment"
    )

    rows = "".join(f"w{n},,2\n" for n in range(7)) + "w0,s,x\n"
    faults = TableFaults("t.csv", read_table(f"id_code,sirna,p\n{rows}".encode(), "t.csv", (*COLUMNS, "p")))
    faults.require_unique("id_code")
    faults.numbers("p")
    faults.require(COLUMNS)
    lead = "t.csv: 16 faults: line 2 (w0): field p is '2'; expected a number from 0 to 1 | line 2 (w0): "
    assert message(faults).startswith(lead)
    assert message(faults).endswith(" | and 11 more")
    assert message(faults).count("|") == 5
    assert "\n" not in message(faults)


def test_written_and_read_again(tmp_path):
    table = read_table(b'id_code,sirna\na,"x, y"\nb,NA\nc,\n', "t.csv", COLUMNS)
    write_table(tmp_path / "t.csv", table.assign(p=[1 / 3, float("nan"), 1.0]))
    assert (tmp_path / "t.csv").read_text() == 'id_code,sirna,p\na,"x, y",0.333333\nb,NA,\nc,,1\n'


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=1, max_size=8, unique=True))
@example(["=1+1", "'=1+1", "''@x", "-5", "+3e2", "-x", "'-5", "@", "'", '"'])
def test_no_label_is_executed_by_a_spreadsheet_and_each_is_read_back(labels):
    content = csv_bytes(pd.DataFrame({"id_code": labels}))
    written = read_table(content, "t.csv", ("id_code",))
    assert unescaped(written)["id_code"].tolist() == labels
    assert all(label[0] not in "=+-@" or float(label) == float(label) for label in written["id_code"])


def test_numbers_and_missing_values_are_written_as_they_are_and_control_characters_are_shown():
    table = pd.DataFrame({"id_code": ["a\tb", None], "=x": [-0.5, float("nan")]})
    assert csv_bytes(table) == b"id_code,'=x\na\\tb,-0.5\n,\n"
