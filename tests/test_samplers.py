"""Sampler: which pictures make which batch."""

from __future__ import annotations

import numpy as np
import pytest
from coloured_pictures import scan, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.dataset.samplers import EpochBatchSampler, image_weights
from utils.dataset.scan import DatasetIndex


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> DatasetIndex:
    return scan(write_folder(tmp_path_factory.mktemp("pictures")))


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 60),
    batch=st.integers(1, 9),
    world=st.integers(1, 4),
    shuffle=st.booleans(),
    rect=st.booleans(),
)
def test_shards_cover_the_pictures_in_equal_steps(count, batch, world, shuffle, rect):
    options = {"shuffle": shuffle, "seed": 3, "whole_batches": rect}
    shards = []
    for rank in range(world):
        sampler = EpochBatchSampler(count, batch, rank=rank, world_size=world, **options)
        sampler.set_epoch(2)
        shards.append(list(sampler))
        assert len(shards[-1]) == len(sampler)
    assert len({tuple(map(len, s)) for s in shards}) == 1 or rect
    keys = [key for shard in shards for b in shard for key in b]
    assert len(set(keys)) == len(keys)  # a picture that comes twice is drawn anew
    assert {key[1] for key in keys} == set(range(count))
    if not rect and count % (batch * world) == 0:
        whole = EpochBatchSampler(count, batch * world, **options)
        whole.set_epoch(2)
        for step, parts in zip(whole, zip(*shards, strict=True), strict=True):
            assert sorted(step) == sorted(key for part in parts for key in part)


def test_sampler_refuses_nonsense():
    with pytest.raises(ValueError, match="rank 2"):
        EpochBatchSampler(10, 2, shuffle=True, rank=2, world_size=2)
    with pytest.raises(ValueError, match="weights must be 10"):
        EpochBatchSampler(10, 2, shuffle=True).set_weights(np.ones(9))


def test_image_weights_favour_rare_and_badly_found_classes(index):
    some = index.subset([0, 3, 6, 9, 1])  # classes 0 0 0 0 1
    rarity = np.array([1 / 4, 1])
    rarity = rarity / rarity.mean()
    np.testing.assert_allclose(image_weights(some, 2), rarity[[0, 0, 0, 0, 1]] / 2)
    np.testing.assert_allclose(
        image_weights(some, 2, np.array([0, 0.5])), rarity[[0, 0, 0, 0, 1]] * [1, 1, 1, 1, 0.25] / 2
    )
    sampler = EpochBatchSampler(5, 2, shuffle=True)
    sampler.set_weights(np.array([0, 0, 0, 1.0, 3]))
    drawn = []
    for epoch in range(200):
        sampler.set_epoch(epoch)
        drawn += [key for b in sampler for key in b]
    pictures = [key[1] for key in drawn]
    assert set(pictures) == {3, 4} and abs(np.mean(np.array(pictures) == 4) - 0.75) < 0.05
    assert len(set(drawn)) == len(drawn)  # drawn twice, it is augmented in two ways
