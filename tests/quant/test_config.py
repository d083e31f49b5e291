from vlpress.quant import config
from vlpress.quant.checkpoint import formats


def test_names_of_formats_are_those_that_can_be_written() -> None:
    assert set(config.FORMATS) == set(formats.FORMATS)
