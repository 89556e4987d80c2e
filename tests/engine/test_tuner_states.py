"""The tuner through any sequence of passes, shortages and errors: a state machine."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from captum_unioncam.engine import accelerators
from captum_unioncam.engine.tuning import PASSES_BEFORE_MORE, PassSetting, PassTuner

CPU = torch.device("cpu")


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


class Passes(RuleBasedStateMachine):
    """Passes of a tuner: any times, any number of rows left, memory that runs out and comes back."""

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock()
        self.patch.setattr(accelerators, "time", self.clock)

    def teardown(self):
        self.patch.undo()

    @initialize(
        rows=st.integers(1, 100),
        formats=st.sampled_from([(False,), (True, False)]),
        learns=st.booleans(),
        constant=st.booleans(),
    )
    def start(self, rows, formats, learns, constant):
        self.given = rows, formats, learns, constant
        self.tuner = PassTuner(CPU, rows, formats, learns=learns, constant=constant)
        self.short, self.plain = False, False

    def one(self, left, seconds=1.0, error=None, examples=0):
        """A pass as the engine runs it; whether it was run again after ``error``, or None."""
        setting = self.tuner.next()
        count = min(setting.rows, left)
        rows = self.tuner.rows_for(setting, count)
        assert count <= rows <= max(setting.rows, 2)
        if error is None:
            with self.tuner.timed(setting, rows):
                self.clock.now += seconds
            return None
        again = self.tuner.recovers(setting, error, rows, examples)
        return again, setting, rows

    @rule(left=st.integers(1, 300), seconds=st.floats(1e-6, 1e3))
    def goes_well(self, left, seconds):
        self.one(left, seconds)

    @rule(left=st.integers(1, 300))
    def memory_runs_out(self, left):
        again, setting, rows = self.one(left, error=torch.OutOfMemoryError("simulated"))
        self.short = True
        assert again == (setting.rows > 1 or rows > setting.rows)
        after = self.tuner.next()
        assert after.rows <= setting.rows
        assert not again or after.rows < setting.rows or self.tuner.rows_for(after, 1) < rows

    @rule(left=st.integers(1, 300), examples=st.integers(1, 5), about_shapes=st.booleans())
    def the_model_does_not_take_it(self, left, examples, about_shapes):
        """The same pass, until the tuner gives it up: soon, and not once if such a pass has gone well."""
        error = RuntimeError("shape" if about_shapes else "of the user's own")
        for _ in range(5):
            before = set(self.tuner.proven)
            again, setting, rows = self.one(left, error=error, examples=examples)
            assert not (again and (rows, setting.channels_last) in before)
            self.plain = True
            if not again:
                break
        assert not again

    @rule()
    def memory_is_back(self):
        for _ in range(8 * self.tuner.passes_before_more):
            if self.tuner.most_rows == self.tuner.limit or self.tuner.passes_before_more > 16 * PASSES_BEFORE_MORE:
                break
            self.one(1000)
        else:
            raise AssertionError("rows do not grow again")

    @invariant()
    def rows_are_within_bounds(self):
        if hasattr(self, "tuner"):
            assert 1 <= self.tuner.next().rows <= self.tuner.limit
            assert 1 <= self.tuner.most_rows <= self.tuner.limit
            assert self.tuner.formats in ((False,), self.given[1])

    @invariant()
    def it_is_the_same_whatever_the_times_unless_it_is_to_learn(self):
        if hasattr(self, "tuner") and not (self.given[2] or self.short or self.plain):
            assert self.tuner.next() == PassSetting(self.given[0], self.given[1][0])
            assert not self.tuner.seconds


TestPasses = Passes.TestCase
TestPasses.settings = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)
