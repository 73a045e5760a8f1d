"""Lines end at line feeds alone, other encodings are named, and no file is ever seen half."""

import gzip
import re
import subprocess

import pytest

from flaxlm import files
from flaxlm.errors import ConfigError, DataError

TEXT = "hello\tworld\nGüte 中文 \u2028 \x0c \x85\n\nlast"


def lines_of(path):
    return [line for _, line in files.bare_lines(path, 1 << 20)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_end_at_line_feeds_alone_and_the_mark_is_no_text(tmp_path, end, mark):
    path = tmp_path / "a.txt"
    path.write_bytes((mark + TEXT.replace("\n", end)).encode())
    assert lines_of(path) == TEXT.split("\n")
    assert files.read_text(path, 1 << 20) == TEXT.replace("\n", end)
    path.write_bytes(b"a\rb\n\rc\r\r\n\r")
    assert lines_of(path) == ["a\rb", "\rc\r", ""]


@pytest.mark.parametrize("name", ["prompts_2028.txt", "prompts_bom.txt"])
def test_a_file_of_two_prompts_is_two_lines(shared, name):
    lines = lines_of(shared(f"cases/07-prompts-file-lines/{name}"))
    assert len(lines) == 2 and not lines[0].startswith("\ufeff")


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
)
@pytest.mark.parametrize("text", ["text\tlabel\nhello\t1\n", "中文很好，对吗？\n" * 20])
def test_wide_encodings_are_named_with_a_command_that_converts(tmp_path, encoding, ending, text):
    path = tmp_path / f"a file.txt{ending}"
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if ending else data)
    for read in (lines_of, lambda path: files.read_text(path, 1 << 20)):
        with pytest.raises(DataError) as caught:
            read(path)
        how, said = re.search("(mark of|looks like) (UTF-[0-9]+)", str(caught.value)).groups()
        assert said == encoding[:6].upper() and (how == "mark of") == (encoding == said.lower())
    command = str(caught.value).split("convert it: ")[1].replace("NEW_FILE", "new.txt")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert files.read_text(tmp_path / "new.txt", 1 << 20) == text


@pytest.mark.parametrize("data", [b"abc\0def\0ghi\0" * 9, b"good line\n\nbad \0 here\n", b"a\0b"])
def test_a_stray_nul_is_no_other_encoding(tmp_path, data):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"byte {data.index(0)} .* is NUL"):
        lines_of(path)


def test_lines_of_old_macs_are_named_with_a_command_that_converts(tmp_path):
    path = tmp_path / "it's.txt"
    path.write_bytes(b"a\rb\r")
    with pytest.raises(DataError, match="carriage return, as on old Macs") as caught:
        lines_of(path)
    command = str(caught.value).split("convert it: ")[1].replace("NEW_FILE", "new.txt")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert lines_of(tmp_path / "new.txt") == ["a", "b"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    files.replace(path, "é")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == "é".encode() and list(tmp_path.iterdir()) == [path]


def test_the_mark_before_json_that_people_edit_is_no_text(tmp_path):
    from flaxlm.interop import config as hugging_face
    from flaxlm.training import config as run_config

    (tmp_path / "recipe.json").write_text('{"seed": 3}', encoding="utf-8-sig")
    assert run_config.read_json(tmp_path / "recipe.json") == {"seed": 3}
    (tmp_path / "config.json").write_text('{"model_type": "none"}', encoding="utf-8-sig")
    with pytest.raises(ConfigError, match="'none'"):
        hugging_face.read(tmp_path)
