"""The words for sub-models."""

import pytest

from cnsn_cli.errors import DetachPointError
from cnsn_cli.exits import Exit, read_exit, read_exits, widths, written


@pytest.mark.parametrize(
    ("word", "exit"),
    [
        ("7", Exit(7)), (7, Exit(7)), (" 7 ", Exit(7)), ("-1", Exit(-1)), ("0", Exit(0)),
        ("@0.5", Exit(0, 0.5)), ("@.5", Exit(0, 0.5)), ("7@0.5", Exit(7, 0.5)), ("@5e-1", Exit(0, 0.5)),
        ("@0.12345678", Exit(0, 0.123457)),
    ],
)  # fmt: skip
def test_words(word, exit):
    assert read_exit(word) == exit
    assert read_exit(exit.word) == exit


def test_a_plain_depth_stays_a_number():
    assert [exit.word for exit in read_exits((2, 7, "@0.5", "7@0.5"))] == [2, 7, "@0.5", "7@0.5"]
    assert [Exit(0).kind, Exit(7).kind, Exit(0, 0.5).kind, Exit(7, 0.5).kind] == [
        "base", "depth", "width", "both",
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["", "x", "@", "7@", "@x", "7@@0.5", "7.5", "@-0.5", "@nan", "@inf", "@0,5"])
def test_what_is_no_word(word):
    with pytest.raises(DetachPointError, match=r"is no sub-model: write 7 .*, @0\.5 .* or 7@0\.5"):
        read_exit(word)


@pytest.mark.parametrize("word", ["@0", "@1", "@1.5", "7@0", "7@1", "@0.9999999"])
def test_a_width_is_a_share(word):
    with pytest.raises(DetachPointError, match="has no width between 0 and 1"):
        read_exit(word)


def test_a_width_at_depth_0():
    with pytest.raises(DetachPointError, match=r"^'0@0.5' drops no conv layer: write @0.5"):
        read_exit("0@0.5")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((7, 2), "exits must ascend without repeats, not 7,2: use 2,7"),
        ((2, 2), "exits must ascend without repeats, not 2,2: use 2"),
        (
            ("7@0.5", "@0.5", 2),
            "exits must fall in width, ascend in depth, without repeats, not 7@0.5,@0.5,2: use 2,@0.5,7@0.5",
        ),
        (
            ("@0.25", "@0.5"),
            "exits must fall in width, ascend in depth, without repeats, not @0.25,@0.5: use @0.5,@0.25",
        ),
        (
            ("@0.5", "@0.50"),
            "exits must fall in width, ascend in depth, without repeats, not @0.5,@0.5: use @0.5",
        ),
    ],
)
def test_the_order(words, message):
    with pytest.raises(DetachPointError) as caught:
        read_exits(words)
    assert str(caught.value) == message


def test_widths_in_order():
    exits = read_exits((2, "@0.5", "7@0.5", "3@0.25"))
    assert widths(exits) == (0.5, 0.25)
    assert written(exits) == "2,@0.5,7@0.5,3@0.25"
