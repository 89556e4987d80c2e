import pytest

# Its assertions explain themselves as those of tests do, though tests import it.
pytest.register_assert_rewrite("tests.blocks")
