"""How many bad rows a job may have before it stops."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.errors import EXIT_BUDGET, InputError


@dataclass(frozen=True)
class Budget:
    """Limits; None: none.

    Attributes:
        max_errors: rows that may fail.
        max_error_rate: share of all rows of the job that may fail, 0 to 1.
    """

    max_errors: int | None = None
    max_error_rate: float | None = None

    def __post_init__(self) -> None:
        if self.max_errors is not None and self.max_errors < 0:
            raise _out_of_range("max_errors", "0 or more", self.max_errors)
        if self.max_error_rate is not None and not 0 <= self.max_error_rate <= 1:
            raise _out_of_range("max_error_rate", "0..1", self.max_error_rate)

    def check(self, errors: int, rows: int, where: str) -> None:
        """Stop a job that has more bad rows than it may.

        Args:
            errors: bad rows so far.
            rows: all rows of the job.
            where: the job's folder.

        Raises:
            InputError: 2112, exit status 4; what is committed stays, and the job can go on with a larger budget.
        """
        limits: list[tuple[int, str]] = []
        if self.max_errors is not None:
            limits.append((self.max_errors, f"--max-errors {self.max_errors}"))
        if (rate := self.max_error_rate) is not None:
            limits.append((int(rate * rows + 1e-9), f"--max-error-rate {rate} of {rows} rows"))
        for limit, name in limits:
            if errors > limit:
                expected = f"expected at most {limit} ({name}), got {errors} so far"
                fix = "look at the files in errors/; the same command with a larger budget goes on from here"
                what = "too many bad rows"
                raise InputError(2112, what, where=where, expected=expected, fix=fix, exit_code=EXIT_BUDGET)


def _out_of_range(name: str, range_: str, value: float) -> InputError:
    return InputError(
        2111, "option value out of range", where=f"option {name}", expected=f"expected {range_}, got {value}"
    )
