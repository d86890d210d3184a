"""Temperature and throttling, from fake boards' sysfs."""

from pathlib import Path

from agent.health import Health, Reading


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


PI = {
    "class/thermal/thermal_zone0/type": "cpu-thermal",
    "class/thermal/thermal_zone0/temp": "61322",
    "devices/platform/soc/soc:firmware/get_throttled": "50000",
    "class/thermal/cooling_device0/type": "pwm-fan",
    "class/thermal/cooling_device0/cur_state": "3",
}


def test_a_board_that_says_nothing(tmp_path: Path):
    assert Health(tmp_path).read() == Reading(None, None)
    bare = write(tmp_path, {"class/thermal/thermal_zone0/type": "cpu-thermal"})
    assert Health(bare).read() == Reading(None, None)


def test_a_raspberry_pi(tmp_path: Path):
    # It was throttled before, and its fan turns: neither slows it down now.
    health = Health(write(tmp_path, PI))
    assert health.read() == Reading(61.322, False)
    for bits, now in (("4", True), ("50005", True), ("0", False), ("nonsense", None)):
        write(tmp_path, {"devices/platform/soc/soc:firmware/get_throttled": bits})
        assert health.read().throttled is now


def test_the_processors_sensor_counts_and_the_hottest_of_several(tmp_path: Path):
    zones = {"battery": "80000", "soc-thermal": "48000", "little-core": "52000", "bigcore": "oops"}
    files = {}
    for i, (kind, temp) in enumerate(zones.items()):
        files[f"class/thermal/thermal_zone{i}/type"] = kind
        files[f"class/thermal/thermal_zone{i}/temp"] = temp
    assert Health(write(tmp_path, files)).read().temperature_c == 52.0


def test_a_sensor_that_is_asleep_is_not_believed(tmp_path: Path):
    for nonsense in ("-274000", "255000", ""):
        write(tmp_path, {**PI, "class/thermal/thermal_zone0/temp": nonsense})
        assert Health(tmp_path).read().temperature_c is None


def test_a_processor_that_cpufreq_slows_down(tmp_path: Path):
    files = {
        "class/thermal/cooling_device0/type": "cpufreq-cpu0",
        "class/thermal/cooling_device0/cur_state": "0",
        "class/thermal/cooling_device1/type": "Processor",
        "class/thermal/cooling_device1/cur_state": "0",
    }
    health = Health(write(tmp_path, files))
    assert health.read().throttled is False
    write(tmp_path, {"class/thermal/cooling_device0/cur_state": "2"})
    assert health.read().throttled is True
