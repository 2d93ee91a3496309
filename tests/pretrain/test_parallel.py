from __future__ import annotations

import pytest

from xmodel.errors import UserError
from xmodel.pretrain.parallel import accumulation
from xmodel.recipe.settings import Pretrain


@pytest.mark.parametrize(("world", "micro", "passes"), [(7, 4, 30), (1, 15, 56), (8, 15, 7), (4, 5, 42), (3, 1, 280)])
def test_the_global_batch_is_kept_on_any_world_size(world: int, micro: int, passes: int) -> None:
    assert accumulation(Pretrain(micro_batch=micro), world) == passes


def test_what_does_not_divide_is_refused_with_what_would() -> None:
    with pytest.raises(
        UserError, match=r"micro_batch: 4 does not divide the 105 sequences of each of 8 .* 1, 3, 5 would"
    ):
        accumulation(Pretrain(micro_batch=4), 8)
    with pytest.raises(UserError, match=r"global_batch: 840 sequences cannot be shared equally by 9"):
        accumulation(Pretrain(), 9)


def test_every_stage_of_a_batch_warm_up_must_divide_too() -> None:
    warmed = Pretrain(micro_batch=3, batch_warmup=[210, 420], batch_warmup_steps=10)
    assert accumulation(warmed, 7) == 40
    with pytest.raises(UserError, match=r"batch_warmup: 210 sequences cannot be shared equally by 4 processes"):
        accumulation(warmed, 4)
    with pytest.raises(
        UserError, match=r"micro_batch: 4 does not divide the 210 sequences .*\(batch_warmup 210\); 2, 3, 5"
    ):
        accumulation(Pretrain(micro_batch=4, batch_warmup=[210, 420], batch_warmup_steps=10), 1)
