"""Progress for people."""


def say(text: str) -> None:
    """One plain line of progress, at once: under `ray job submit` it is streamed."""
    print(text, flush=True)
