import pytest

from components.core.storage.whole_directory import whole_directory


def test_appears_whole_and_replaces_an_earlier_one(tmp_path):
    out = tmp_path / "a" / "out"
    for name in ("first", "second"):
        with whole_directory(out) as making:
            (making / name).write_text(name)
            assert not (out / name).exists()
    assert [path.name for path in out.iterdir()] == ["second"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_failure_leaves_the_earlier_one_and_no_trace(tmp_path):
    out = tmp_path / "out"
    with whole_directory(out) as making:
        (making / "kept").touch()

    def fail():
        with whole_directory(out) as half:
            (half / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "kept"]
