"""The planner's page: its data and numbers, and in Chromium its answers beside `umup.plan`."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import parse_qs, urlencode

import pytest

from book.test_browser import WIDTHS, browser, framed, problems, reading, serving  # noqa: F401
from umup import plan
from umup.book import planner_page
from umup.config import MeshConfig
from umup.errors import BookError, ConfigError
from umup.plan import budgets, formulas, hardware

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
SMALL = {
    **planner_page.PRESETS["55M"],
    "precision": "bf16",
    "attention": "xla",
    "machine": "h100",
    "devices": 8,
    "hours": 2,
    "price": 3,
    "ratio": 20,
    "inference": 10,
    "scheme": "umup",
    "eta": 1,
}


def case(preset, precision="bf16", machine="h100", **model):
    model = {"attention": "cudnn"} | model
    chosen = planner_page.configs(preset, precision, **model)
    return plan.case(*chosen, MeshConfig(), hardware.get(machine))


# ------------------------------------------------------------------ what the page asks of formulas


def meshes(c, total):
    """Every layout over the devices, by brute force."""
    ways = range(1, total + 1)
    for data, fsdp, tensor in itertools.product(ways, ways, ways):
        if data * fsdp * tensor == total and math.log2(tensor) % 1 == 0:
            for parts in (1, 2, 4, 8, 16):
                trial = replace(c, data=data, fsdp=fsdp, tensor=tensor, accumulate=parts)
                if budgets.divides_evenly(trial):
                    yield trial


def test_the_leanest_layout_by_brute_force():
    c = case("55M", attention="xla")
    needs = [formulas.memory(replace(one, remat="full")).total for one in meshes(c, 8)]
    found = budgets.leanest(c, 8)
    assert found and formulas.memory(found).total == min(needs)
    assert budgets.leanest(c, 7) is None


def test_the_smallest_cluster_is_the_first_doubling_that_fits():
    c = case("7B")
    assert not budgets.layouts(c, 1) and budgets.layouts(c, 2)
    found, seconds = budgets.smallest_cluster(c, 1)
    assert found.devices == 2
    assert seconds == min(layout.seconds for layout in budgets.layouts(c, 2))
    assert budgets.smallest_cluster(replace(c, memory=1.0), 1) is None
    few, _ = budgets.smallest_cluster(replace(c, batch_size=1), 1)
    assert few.batch_size == few.devices == 2


def test_what_a_time_buys():
    c = replace(case("55M"), data=2, usd_per_hour=3.0)
    seconds = formulas.step_time(c).seconds
    bought = budgets.spent(c, 1000 * seconds)
    assert bought.steps == pytest.approx(1000)
    assert bought.tokens == pytest.approx(1000 * 16 * 1024)
    assert bought.tokens_per_parameter == pytest.approx(1000 * 16 * 1024 / 54_525_952)
    assert bought.dollars == pytest.approx(1000 * seconds / 3600 * 2 * 3)


# ------------------------------------------------------------------ the chapter


def test_fill_knows_every_name_and_uses_every_value():
    assert planner_page.fill("{{a}} and {{b_1}}, {{a}}", {"a": "x", "b_1": "{y}"}) == "x and {y}, x"
    with pytest.raises(BookError, match=r"\{\{a\}\}.*allowed: b"):
        planner_page.fill("{{a}} {{b}}", {"b": ""})
    with pytest.raises(BookError, match=r"\{\{b\}\}.*place for it"):
        planner_page.fill("{{a}}", {"a": "", "b": ""})


def laptop(**changes):
    known = hardware.catalogue(ROOT / "book" / "planner" / "laptop.toml")
    return type(known["cpu"]).from_dict(known["rtx5080_laptop"].to_dict() | changes)


def test_the_example_by_hand():
    values = planner_page.example(laptop())
    n, tokens = 2 * 32768 * 256 + 36 * (4 * 256**2 + 3 * 256 * 1024), 16 * 1024
    assert values["base_parameters"] == "54.5 M" and n == 54_525_952
    certain = 16 * n  # weights, their gradients and two moments in float32
    assert values["base_naive"] == f"{(certain + 36 * tokens * 256 * 2) / GIB:.3g} GiB"
    squares = 36 * 4 * tokens * 4 * 1024 + 36 * tokens * 3 * 256 * 2
    assert values["base_squares"] == f"{squares / GIB:.3g} GiB"
    assert values["six_nd"] == f"{6 * n * tokens / 1e12:.3g} T"
    products = 6 * tokens * (n - 32768 * 256) + 12 * tokens * 36 * 1024 * 256
    assert values["exact"] == f"{products / 1e12:.3g} T"
    assert values["laptop_room"] == f"{16e9 * 0.92 / GIB:.3g} GiB"


def test_a_machine_on_which_the_example_is_another_is_refused():
    for memory_gb in (8.0, 80.0):
        with pytest.raises(BookError, match="and does in two parts"):
            planner_page.example(laptop(memory_gb=memory_gb))


def test_the_widest_model_sees_enough_and_the_next_does_not():
    c = replace(case("55M"), batch_size=128)
    (found, _), seen = planner_page.widest(c, 8, 7200.0, 20.0)
    assert found.d_ff == 4 * found.d_model and found.n_layers == 36
    enough = []
    for width in (found.d_model, found.d_model + 128):
        wide = replace(c, d_model=width, d_ff=4 * width)
        seconds = min(layout.seconds for layout in budgets.layouts(wide, 8))
        tokens = 7200 / seconds * 128 * 1024
        enough.append(tokens >= 20 * formulas.parameters(wide).total)
        assert width > found.d_model or seen == pytest.approx(tokens)
    assert enough == [True, False]
    with pytest.raises(BookError, match="width of 128"):
        planner_page.widest(c, 8, 1.0, 20.0)


def test_generate_writes_the_page_and_the_numbers(tmp_path):
    (tmp_path / "planner").symlink_to(ROOT / "book" / "planner")
    text = (ROOT / "book" / "planning.md").read_text(encoding="utf-8")
    (tmp_path / "planning.md").write_text(text, encoding="utf-8")
    planner_page.generate(tmp_path)
    done = (tmp_path / "planning.md").read_text(encoding="utf-8")
    assert "{{" not in done and "54.5 M" in done
    page = (tmp_path / "_generated" / "planner.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 1 and not re.search(r"(src|href)=.?https?:", page)
    for name in hardware.catalogue():
        assert f'"{name}"' in page


# ------------------------------------------------------------------ the page in Chromium


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planner")
    text = framed(f"<h2 id=place>Plan</h2>{planner_page.page(ROOT / 'book' / 'planner')}")
    (folder / "page.html").write_text(text, encoding="utf-8")
    with serving(folder) as address:
        yield address


@pytest.fixture
def page(browser, origin):  # noqa: F811
    with reading(browser, origin) as (page, wrong):
        page.goto(f"{origin}page.html")
        yield page
        assert wrong == []


def verdict(page):
    return page.locator(".planner-verdict").inner_text()


@pytest.mark.browser
def test_cases_are_those_of_the_planner(page):
    known = itertools.product(planner_page.PRESETS, planner_page.PRECISIONS, hardware.catalogue())
    for preset, precision, machine in known:
        script = """([preset, precision, machine]) => {
            const state = {...planner.start(), ...planning.presets[preset], precision, machine,
                           attention: "blocked", price: planning.machines[machine].usd_per_hour};
            return [planner.caseOf(state), Object.keys(planner.wrong(state))];
        }"""
        found, wrong = page.evaluate(script, [preset, precision, machine])
        try:
            expected = asdict(case(preset, precision, machine, attention="blocked"))
        except ConfigError:
            assert wrong == ["precision"]
            continue
        assert wrong == []
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            near = value if isinstance(value, str) else pytest.approx(value, rel=1e-12)
            assert found[name] == near, name


@pytest.mark.browser
def test_answers_are_those_of_the_planner(page):
    page.goto(page.url + "#" + urlencode(SMALL))
    page.reload()
    found = page.evaluate("s => planner.compute({...planner.start(), ...s})", SMALL)
    c = case("55M", attention="xla")
    ranked = plan.layouts(c, 8)
    seconds = [layout.seconds for layout in ranked]
    assert [one["seconds"] for one in found["found"]] == pytest.approx(seconds)
    bought = plan.budget(c, 8, 2.0, inference_tokens=10e9)
    assert found["largest"]["layout"]["case"]["n_layers"] == bought.case.n_layers
    assert found["largest"]["tokens"] == pytest.approx(bought.tokens)
    for name, one in bought.allocations.items():
        assert found["allocations"][name] == pytest.approx(one._asdict())
    text = page.locator("#planner").inner_text()
    first = ranked[0].case
    memory = formulas.memory(first).total / GIB
    mesh = f"mesh {first.data}×{first.fsdp}×{first.tensor}, remat {first.remat}"
    assert mesh in verdict(page) and f"{memory:.3g}\u00a0GiB" in text
    assert f"{1e3 * seconds[0]:.3g}\u00a0ms" in verdict(page)
    assert "$48.00" in text and f"{formulas.step_time(first).mfu:.1%}"[:-1] in text


@pytest.mark.browser
def test_what_does_not_fit_says_by_how_much_and_what_would(page):
    page.select_option("[name=preset]", "70B")
    page.fill("[name=devices]", "8")
    c = case("70B")
    excess = formulas.memory(budgets.leanest(c, 8)).total - 80e9 * 0.92
    enough, _ = budgets.smallest_cluster(c, 8)
    assert excess > 0
    said = verdict(page)
    assert said.startswith("Does not fit") and f"{excess / GIB:.3g}\u00a0GiB more" in said
    assert f"{enough.devices} devices would do: mesh {enough.data}×" in said
    assert page.locator(".planner-bar i").count() == 1
    page.fill("[name=devices]", "7")
    page.fill("[name=n_layers]", "2")
    assert verdict(page).startswith("Cannot be split")


@pytest.mark.browser
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("d_head", "100", "Head size: a divisor of the width, 4096."),
        ("n_layers", "", "Layers: a whole number."),
        ("hours", "0", "Hours: more than 0."),
        ("devices", "1.5", "Devices: a whole number."),
        ("vocab_size", "-1", "Vocabulary: more than 0."),
    ],
)
def test_a_bad_field_is_named_and_nothing_else_is_shown(page, name, value, said):
    page.fill(f"[name={name}]", value)
    assert said in verdict(page).splitlines()
    assert page.locator("[aria-invalid=true]").first.get_attribute("name") == name
    assert page.locator(".planner-out").inner_html() == ""
    page.select_option("[name=preset]", "125M")
    page.fill(f"[name={name}]", "64")
    assert page.locator("[aria-invalid=true]").count() == 0


@pytest.mark.browser
def test_a_choice_takes_what_it_excludes_with_it(page):
    field = page.locator("[name=attention]")
    page.select_option("[name=precision]", "float32")
    assert field.input_value() == "blocked" and verdict(page).startswith("Fits")
    page.select_option("[name=machine]", "tpu_v5p")
    assert "tpu_v5p has no float32 products" in verdict(page)
    page.select_option("[name=precision]", "FP8")
    assert "no FP8 products" in verdict(page)
    price = page.locator("[name=price]").input_value()
    assert float(price) == hardware.get("tpu_v5p").usd_per_hour
    page.select_option("[name=attention]", "cudnn")
    assert verdict(page).startswith("Attention: ")


@pytest.mark.browser
def test_the_address_holds_the_plan(page, browser, origin):  # noqa: F811
    page.locator("[name=preset]").focus()
    page.keyboard.press("Home")  # by keyboard alone
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.type("512")
    page.select_option("[name=machine]", "b200")
    given = parse_qs(page.url.split("#")[1])
    assert given["n_layers"] == ["36"] and given["d_model"] == ["512"]
    assert given["machine"] == ["b200"] and given["price"] == ["5.5"]
    assert page.locator("[name=preset]").input_value() == ""
    with reading(browser, origin) as (other, wrong):
        other.goto(page.url)
        assert other.locator("#planner").inner_text() == page.locator("#planner").inner_text()
        other.evaluate("location.hash = 'place'")  # of the page, not a plan
        assert other.locator("[name=d_model]").input_value() == "512"
        other.evaluate("location.hash = 'd_model=1024&machine=nothing&n_layers=oops'")
        other.wait_for_function("document.querySelector('[name=d_model]').value === '1024'")
        assert "Layers: a whole number." in other.locator(".planner-verdict").inner_text()
        assert wrong == []


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_reads_well(browser, origin, width, theme):  # noqa: F811
    with reading(browser, origin, width, theme) as (page, wrong):
        page.set_viewport_size({"width": 375 if width == 390 else width, "height": 800})
        for state in ({}, {"devices": 2}, {"d_head": 3}):
            url = f"{origin}page.html#{urlencode(SMALL | state)}"
            page.goto("about:blank")
            assert problems(page, wrong, url) == []
        unnamed = page.locator("#planner").evaluate(
            "e => [...e.querySelectorAll('input, select')].filter(f => !f.labels.length).length"
        )
        assert unnamed == 0
