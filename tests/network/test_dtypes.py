from typing import get_args

from cnsn_cli.choices import Half
from cnsn_cli.network.dtypes import HALVES


def test_every_word_has_a_dtype():
    assert tuple(HALVES) == get_args(Half)
