"""Reference answers: what is compared with them must have their shape."""

from __future__ import annotations

import numpy as np
import pytest

from tocom.errors import EngineError
from tocom.formats.references import References


def test_answers_with_rows_left_out_are_an_engine_error() -> None:
    references = References(
        images=np.zeros((2, 3, 4, 4), np.float32),
        answers={4: np.arange(6, dtype=np.float32).reshape(2, 3)},
        tolerances={4: 1e-3},
        conclusive={4: (0, 1)},
        outputs={"logits": 3},
    )
    both = {"logits": references.answers[4]}
    assert references.compare(4, (0, 1), both).is_right
    for wrong in (both["logits"][:1], both["logits"][:, :2]):
        with pytest.raises(EngineError, match=r"Degree 4 answered .* where the reference answers are \[2, 3\]"):
            references.compare(4, (0, 1), {"logits": wrong})
