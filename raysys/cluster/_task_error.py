"""The original error of a failed Ray task."""


def task_error_cause(error: BaseException) -> BaseException:
    """The exception that a task raised, from the error that `ray.get` raises.

    Ray wraps it once for each task that waited for another. An error that is not a task's, or
    whose cause could not be pickled, is returned unchanged.

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
