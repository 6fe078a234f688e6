import pytest

from remotegpu_hub.errors import Invalid
from remotegpu_hub.units import GIB, MICROS, UNLIMITED, exact, parse_bytes, read_exact


@pytest.mark.parametrize(
    ("value", "per", "text"),
    [
        (0, GIB, "0"),
        (1536 * 2**20, GIB, "1.5"),
        (100 * GIB, GIB, "100"),
        (1, GIB, "0.000000000931322574615478515625"),
        (UNLIMITED - 1, GIB, "8589934591.999999998137354850769042968750"),
        (2500, 1000, "2.5"),
        (1_234_567_891, MICROS, "1234.567891"),
        (40, 1, "40"),
    ],
)
def test_what_people_type_is_what_is_counted_to_the_last_digit(value: int, per: int, text: str):
    assert exact(value, per) == (text.rstrip("0") if "." in text else text)
    assert read_exact(f" {text} ", per) == value


@pytest.mark.parametrize("text", ["", "x", "-1", "1,5", "1e3", "0x1", "٣", "nan", "1.", ".5", "9" * 19])
def test_what_is_no_amount_is_told(text: str):
    with pytest.raises(Invalid, match="is not an amount"):
        read_exact(text, 1000)


def test_what_is_finer_or_more_than_can_be_counted_is_told():
    with pytest.raises(Invalid, match="finer"):
        read_exact("0.0001", 1000)
    with pytest.raises(Invalid, match="too much"):
        read_exact("8589934592", GIB)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("9007199254740993", 2**53 + 1), ("9007199254740993B", 2**53 + 1), ("8796093022207.999999K", 2**53 - 1),
        ("16G", 16 * GIB), ("1.5 TiB", 1536 * GIB), (" 512 mb ", 512 * 2**20), ("0.000001K", 0), ("0.1k", 102),
    ],
)  # fmt: skip
def test_a_size_is_read_to_the_last_byte(text: str, size: int):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "1,5G", "1e3", "1.0000001G", "16GG", "16G\n1", "9" * 400])
def test_what_is_no_size_is_told(text: str):
    with pytest.raises(Invalid, match="is not a size"):
        parse_bytes(text)
