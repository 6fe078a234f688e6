import pytest

from remotegpu_hub.errors import Invalid
from remotegpu_hub.units import GIB, MICROS, UNLIMITED, exact, read_exact


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
