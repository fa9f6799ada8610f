"""Machines: the built-in ones, a user's own, and what is refused."""

import pytest

from umup.errors import ConfigError
from umup.plan import hardware

OWN = """
[laptop]
tflops_bfloat16 = 40
memory_gb = 16
memory_gb_s = 500
link_gb_s = 10
network_gb_s = 1
"""


def test_known_machines_have_the_published_figures():
    known = hardware.catalogue()
    assert set(known) == {"h100", "h200", "a100", "b200", "tpu_v5p", "cpu"}
    assert known["h100"].tflops_bfloat16 == 989.4
    assert known["h200"].memory_gb == 141 and known["a100"].tflops_float8 == 0
    assert known["cpu"].copied_moments == 2 and known["h100"].copied_moments == 0


def test_a_file_adds_and_replaces(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text(OWN + OWN.replace("laptop", "h100"))
    known = hardware.catalogue(file)
    assert known["laptop"].memory_gb == 16 and known["laptop"].name == "laptop"
    assert known["h100"].memory_gb == 16 and known["a100"].memory_gb == 80


def test_unknown_hardware_lists_the_known():
    with pytest.raises(ConfigError, match=r"h100, h200, a100, b200, tpu_v5p, cpu.*mean 'h100'"):
        hardware.get("h1000")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[x", "a TOML file"),
        ("x = 1", r"x: received 1; allowed: a table \[x\]"),
        ("[x]\nmemory_gb = 1", "x.tflops_bfloat16"),
        (OWN + "colour = 'red'", "laptop.colour"),
        (OWN + "usable = 1.5", "laptop.usable: received 1.5"),
        (OWN + "gemm_efficiency = 0", "laptop.gemm_efficiency: received 0"),
    ],
)
def test_bad_files_name_machine_and_field(tmp_path, text, message):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        hardware.catalogue(file)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="a TOML file"):
        hardware.catalogue(tmp_path / "none.toml")
