from components.core.config import differences, first_difference


def test_differences_have_dotted_names_and_both_values():
    assert differences({"a": {"b": 1}, "c": [1]}, {"a": {"b": 1}, "c": [1]}) == {}
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 2}}) == {"a.c": (2, None), "a.d": (None, 2)}


def test_the_first_difference_is_the_first_by_name():
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) == ""
    assert first_difference({"z": 1, "a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 2}}) == "a.c"
