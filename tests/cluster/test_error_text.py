"""Errors of user code in one line."""

import re

import pytest
from pydantic import BaseModel

from raysys.cluster import error_line, error_traceback
from raysys.errors import DataError, StepError


class Config(BaseModel):
    depth: int


def raised(error: BaseException) -> BaseException:
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def invalid() -> BaseException:
    with pytest.raises(ValueError, match="depth") as caught:
        Config(depth="deep")  # type: ignore[arg-type]
    return caught.value


HERE = r" at tests/cluster/test_error_text\.py:\d+"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (raised(KeyError("b")), rf"KeyError: 'b'{HERE}"),
        (raised(ValueError()), rf"ValueError{HERE}"),
        (raised(ValueError("\x1b[36mone\x1b[39m\n  two")), rf"ValueError: one two{HERE}"),
        (raised(ExceptionGroup("all", [KeyError("x")])), rf"KeyError: 'x'{HERE}"),
        (
            raised(ExceptionGroup("all", [KeyError("x"), OSError("y")])),
            rf"ExceptionGroup: KeyError: 'x'; OSError: y{HERE}",
        ),
        (
            invalid(),
            rf"ValidationError: depth: Input should be a valid integer, .*; given: 'deep'{HERE}",
        ),
        (raised(DataError("no rows: give some")), "DataError: no rows: give some"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_one_line_with_its_place(error: BaseException, line: str) -> None:
    assert re.fullmatch(line, error_line(error))


def test_a_traceback_begins_in_the_code_of_the_user() -> None:
    text = error_traceback(invalid())
    assert text.startswith("Traceback (most recent call last):\n")
    assert "tests/cluster/test_error_text.py" in text.splitlines()[1]
    assert "pydantic.dev" not in text


def test_an_error_of_a_step_pickles() -> None:
    import pickle

    error = StepError("etl", "KeyError: 'b' at x.py:3", "lost")
    error.add_note("Traceback")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == "step 'etl': KeyError: 'b' at x.py:3"
    assert (copy.loss, copy.__notes__) == ("lost", ["Traceback"])
