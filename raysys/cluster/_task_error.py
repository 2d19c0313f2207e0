"""The original error of a failed Ray task."""


def task_error_cause(error: BaseException) -> BaseException:
    """The exception raised inside a task, from the error raised by `ray.get`.

    Ray wraps it once for each task in a chain. Other errors, and those with an unpicklable cause,
    are returned unchanged.

    Example:
        try:
            ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise cluster.task_error_cause(error) from None
    """
    from ray.exceptions import RayTaskError

    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error
