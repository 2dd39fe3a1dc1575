"""The table of devices, and the names by which drivers know them."""

from __future__ import annotations

import pytest

from chatbridge.common.devices import CUDA_NAMES, DEVICES, device, device_of


@pytest.mark.parametrize(
    ("cuda_name", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_names_that_drivers_give(cuda_name, name):
    assert device_of(cuda_name) is DEVICES[name]


@pytest.mark.parametrize(
    "cuda_name",
    [
        "NVIDIA H100 PCIe",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H20",
        "NVIDIA GH200 480GB",
        "NVIDIA A10G",
        "NVIDIA L40S",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "Tesla V100-SXM2-32GB",
        "",
    ],
)
def test_other_peaks_are_not_claimed(cuda_name):
    assert device_of(cuda_name) is None


def test_every_entry_has_a_name_and_sensible_numbers():
    assert set(CUDA_NAMES.values()) == set(DEVICES)
    for name, found in DEVICES.items():
        assert found.name == name and found.half_tflops > found.single_tflops > 0
        assert found.memory_gb >= 24 and 0 < found.utilisation < 1
    assert {name for name, found in DEVICES.items() if found.nvlink} == {"a100-40gb", "a100-80gb", "h100", "h200"}


def test_numbers_can_be_replaced():
    found = device("h100", tflops=100, memory_gb=24, utilisation=0.5)
    assert (found.half_tflops, found.memory_gb, found.utilisation) == (100, 24, 0.5)
    assert (found.single_tflops, found.nvlink) == (67, True)
    for wrong in ({"tflops": 0}, {"memory_gb": -1}, {"utilisation": 2}):
        with pytest.raises(ValueError, match="must be above 0|share of the peak"):
            device("h100", **wrong)
    with pytest.raises(ValueError, match="did you mean 'h100'"):
        device("h10")
