"""The explorer: the numbers of its JavaScript are those of Python, and its page works."""

import copy
import functools
import hashlib
import json
import re
import shutil
import socket
import struct
import subprocess
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from browser import PROGRAM, browse

from ddpm_lab.cli import explore
from ddpm_lab.cli.script import run_script
from ddpm_lab.data.datasets import to_uint8
from ddpm_lab.diffusion import samplers, schedules
from ddpm_lab.diffusion.analytic_denoisers import Mixture, MixtureDenoiser
from ddpm_lab.diffusion.conditioning import Condition
from ddpm_lab.diffusion.guidance import ClassifierFreeGuidance
from ddpm_lab.diffusion.ode_solvers import EDM, DPMSolver, Heun
from ddpm_lab.diffusion.process import ForwardProcess
from ddpm_lab.diffusion.rng import PerSampleGenerator
from ddpm_lab.diffusion.timestep_spacing import SPACINGS, timesteps
from ddpm_lab.diffusion.variances import Beta, BetaTilde
from ddpm_lab.evaluation.analytic_tables import sliced_wasserstein
from ddpm_lab.explorer import runtime
from ddpm_lab.explorer.page import FOLDER, MODULES, render_page, schedule_tables
from ddpm_lab.runs.run_dir import RunDir
from ddpm_lab.sampling.class_names import parse_label
from ddpm_lab.sampling.editing import edit
from ddpm_lab.utils.errors import ResourceError, UserError

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed")
MIXTURE = Mixture(
    torch.tensor([[-1.0, 0.5], [-0.1, -0.9], [0.9, 0.6]], dtype=torch.float64),
    torch.tensor([0.4, 0.2, 0.4], dtype=torch.float64),
    0.2,
    torch.tensor([0, 0, 1]),
)
LIMIT = 1200
"""Lines of JavaScript without comments and blank lines"""
SAMPLERS = {
    "ddpm, small": ({"sampler": "ddpm", "variance": "beta_tilde"}, samplers.DDPM, {}),
    "ddpm, large": ({"sampler": "ddpm", "variance": "beta"}, samplers.DDPM, {}),
    "ddim": ({"sampler": "ddim", "eta": 0}, samplers.DDIM, {}),
    "ddim, eta": ({"sampler": "ddim", "eta": 0.5}, samplers.DDIM, {"eta": 0.5}),
    "ddim, sigma_hat": (
        {"sampler": "ddim", "eta": 1, "sigmaHat": True},
        samplers.DDIM,
        {"eta": 1.0, "sigma_hat": True},
    ),
    "dpm_solver": ({"sampler": "dpm_solver"}, DPMSolver, {}),
    "heun": ({"sampler": "heun"}, Heun, {}),
}


def javascript(body, modules, value):
    """Return the JSON of `body`, an expression of `input`, with the exports of `modules`."""
    imports = [f"import * as {name} from '{(FOLDER / name).as_uri()}.mjs';" for name in modules]
    script = "\n".join(
        [
            *imports,
            "import { readFileSync } from 'node:fs';",
            "const input = JSON.parse(readFileSync(0, 'utf-8'));",
            f"console.log(JSON.stringify(await ({body})));",
        ]
    )
    command = [NODE, "--input-type=module", "-e", script]
    result = subprocess.run(command, input=json.dumps(value), capture_output=True, text=True)
    assert not result.returncode, result.stderr
    return json.loads(result.stdout)


def components(mixture=MIXTURE):
    rows = zip(mixture.means.tolist(), mixture.weights.tolist(), mixture.labels, strict=True)
    return [{"x": x, "y": y, "weight": w, "label": int(label)} for (x, y), w, label in rows]


@needs_node
@pytest.mark.parametrize("size", [16, 64, 100])
def test_noise_is_that_of_a_sample_in_python(size):
    samples = [0, 1, 7, 1000]
    cases = [(0, 0), (3, 0), (2**33 + 5, 2**31)]
    body = """input.cases.map(([seed, stream]) => {
        const draw = noise.perSampleNoise(seed, input.samples, input.size, stream);
        return [draw(), draw()].map((row) => [...row]);
    })"""
    value = {"cases": cases, "samples": samples, "size": size}
    results = torch.tensor(javascript(body, ["noise"], value))
    for (seed, stream), result in zip(cases, results, strict=True):
        generator = PerSampleGenerator(seed, samples, stream)
        for draw in result:
            expected = generator(torch.empty(len(samples), size))
            torch.testing.assert_close(draw.view_as(expected), expected, atol=2e-6, rtol=2e-6)


@needs_node
def test_times_are_those_of_python():
    cases = [
        (T, steps, spacing)
        for T in (10, 25, 1000, 4000)
        for steps in (1, 2, 3, 7, 10)
        for spacing in SPACINGS
    ]
    assert {*javascript("process.spacings", ["process"], None)} == {*SPACINGS}
    results = javascript("input.map((each) => process.timesteps(...each))", ["process"], cases)
    for (T, steps, spacing), times in zip(cases, results, strict=True):
        assert times == timesteps(T, steps, spacing), (T, steps, spacing)


@needs_node
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("label", "w"), [(None, 0), (1, 0), (1, 2.5)])
@torch.no_grad()
def test_chains_are_those_of_python(name, label, w):
    options, sampler, keywords = SAMPLERS[name]
    process = ForwardProcess(schedules.cosine(steps=50))
    variance = Beta() if options.get("variance") == "beta" else BetaTilde()
    denoiser = MixtureDenoiser(process, variance, MIXTURE)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20, 40, 2, generator=generator)
    draws = iter(noise)
    cond = Condition() if label is None else Condition(torch.full((40,), label))
    guided = ClassifierFreeGuidance(denoiser, w)
    expected = sampler(steps=8, clip=0.9, **keywords)(
        guided, next(draws), cond, lambda x: next(draws)
    )
    body = """(async () => {
        const forward = new process.Process(input.tables);
        const data = new mixture.Mixture(input.components, 0.2);
        const draws = input.noise.map((row) => Float32Array.from(row));
        const denoise = (x, t) => {
            const [alpha, sigma] = [forward.alpha[t], forward.sigma[t]];
            const x0 = data.denoise(x, alpha, sigma, input.label);
            return samplers.guide(x0, data.denoise(x, alpha, sigma), input.w);
        };
        const noise = () => draws.shift();
        const options = { ...input.options, process: forward, clip: 0.9, noise };
        const times = process.timesteps(forward.steps, 8, "uniform");
        let end;
        for await (const step of samplers.chain(denoise, noise(), times, options)) end = step.next;
        return [...end];
    })()"""
    value = {
        "tables": schedule_tables(process),
        "components": components(),
        "noise": noise.flatten(1).tolist(),
        "label": label,
        "w": w,
        "options": options,
    }
    result = javascript(body, ["process", "samplers", "mixture"], value)
    result = torch.tensor(result).view(40, 2)
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=2e-5)


@needs_node
def test_mixture_has_the_density_and_the_score_of_python():
    process = ForwardProcess(schedules.linear(steps=50))
    denoiser = MixtureDenoiser(process, BetaTilde(), MIXTURE)
    points = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    body = """input.points.map(([x, y]) => {
        const data = new mixture.Mixture(input.components, 0.2);
        return [null, 1].map((label) => [
            data.logDensity(x, y, 1, 0, label), ...data.estimateAt(x, y, 0.6, 0.8, label),
            ...data.scoreAt(x, y, 0.6, 0.8, label), ...data.scoreAt(x, y, 1, 0, label)]);
    })"""
    value = {"points": points.tolist(), "components": components()}
    result = torch.tensor(javascript(body, ["mixture"], value), dtype=torch.float64)
    for column, label in enumerate((None, torch.ones(30, dtype=torch.int64))):
        torch.testing.assert_close(result[:, column, 0], denoiser.log_prob(points, label))
    table = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    process.alpha_sigma = lambda t: (table[t, 0], table[t, 1])
    ones = torch.ones(30, dtype=torch.int64)
    for column, cond in enumerate((Condition(), Condition(ones))):
        expected = denoiser(points, ones, cond).x0
        torch.testing.assert_close(result[:, column, 1:3], expected)
        score = process.score(points, expected, ones)
        torch.testing.assert_close(result[:, column, 3:5], score)
    # The data also have a score.
    leaf = points.clone().requires_grad_()
    (score,) = torch.autograd.grad(denoiser.log_prob(leaf, None).sum(), leaf)
    torch.testing.assert_close(result[:, 0, 5:], score)


@needs_node
def test_command_states_label_and_guidance():
    run = {"command": "sample", "classes": ["a b", "c"], "labels": ["'a b'", "c"], "nullable": True}
    run |= {"guided": False, "defaults": {"clip": None}}
    values = {"seed": 1, "count": 2, "sampler": "heun", "steps": 3, "spacing": "uniform"}
    cases = [
        (run, {"label": "turn", "w": 0}),
        (run, {"label": "0", "w": 1.5}),
        (run | {"guided": True}, {"label": "none", "w": 1.5}),
        (run | {"guided": True, "nullable": False}, {"label": "1", "w": 0}),
    ]
    value = [(run, values | more) for run, more in cases]
    body = "input.map((each) => model.sampleCommand(...each))"
    common = "sample seed=1 count=2 sampler=heun sampler.steps=3 sampler.spacing=uniform"
    assert javascript(body, ["model"], value) == [
        f"{common} sampler.clip=null",
        f"{common} sampler.clip=null label='a b' guidance=classifier_free guidance.w=1.5",
        f"{common} sampler.clip=null label=none guidance=none",
        f"{common} sampler.clip=null label=c guidance=none",
    ]


@needs_node
def test_sliced_distance_of_a_shift_is_its_length():
    points = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    shifted = points + torch.tensor([0.3, -0.4])
    value = [points.flatten().tolist(), shifted.flatten().tolist()]
    body = "mixture.slicedWasserstein(...input.map((each) => Float32Array.from(each)))"
    result = javascript(body, ["mixture"], value)
    assert result == pytest.approx(0.5 / 2**0.5, rel=1e-4)
    expected = sliced_wasserstein(points.double(), shifted.double(), directions=4096)
    assert result == pytest.approx(expected, rel=0.03)  # random directions


def test_modules_stay_small_and_fetch_nothing():
    files = [*FOLDER.glob("*.mjs")]
    assert {file.stem for file in files} == {*MODULES}
    lines = [line.strip() for file in files for line in file.read_text().splitlines()]
    code = [line for line in lines if line and not line.startswith(("//", "/*", "*"))]
    assert len(code) <= LIMIT
    assert not any(re.search(r"https:|innerHTML|eval\(", line) for line in code)


@pytest.fixture
def page(tmp_path):
    with browse(tmp_path / "profile") as page:
        yield page
        assert not page.errors


def set_control(page, section, label, value):
    """Set the control of `label` in the form of `section`, as a user does."""
    page.run(
        f"""{{
        const labels = [...document.querySelectorAll('{section} label')];
        const label = labels.find((each) => each.textContent === {json.dumps(label)});
        const input = document.getElementById(label.htmlFor);
        if (input.type === 'checkbox') input.click();
        else {{
            input.value = {json.dumps(str(value))};
            if (input.value !== {json.dumps(str(value))}) throw new Error(input.value);
            input.dispatchEvent(new Event('input', {{ bubbles: true }}));
        }}
    }}"""
    )


def press(page, key):
    for event in ("keyDown", "keyUp"):
        text = {"text": "\r"} if key == "Enter" and event == "keyDown" else {}
        page.call("Input.dispatchKeyEvent", type=event, key=key, code=key, **text)


LAW = "document.querySelector('.law').textContent"
PIXELS = """(() => {
    const canvas = document.querySelector('#analytic canvas');
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let hash = 0;
    for (const value of data) hash = (Math.imul(hash, 31) + value) | 0;
    return hash;
})()"""
CONTROLS = {
    "time t": 400,
    "schedule": "cosine",
    "sampler": "ddpm",
    "variance": "beta",
    "steps": 20,
    "spacing": "trailing",
    "class": 1,
    "guidance w": 3,
    "component width": 0.3,
    "seed": 5,
    "density at t": "",
    "score at t": "",
    "trajectories": "",
}


@needs_browser
@pytest.mark.slow
def test_analytic_page_is_one_file_whose_controls_work(page, tmp_path):
    file = tmp_path / "explorer.html"
    explore.write_page(file)
    assert file.stat().st_size <= 300_000
    page.open(file.as_uri())
    page.wait(LAW)
    law = page.run(LAW)
    # 10 steps of DDIM are too narrow, and farther from the data than other data are.
    distance, floor, width = map(float, re.findall(r"\d\.\d+", law))
    assert distance > 1.5 * floor and width < 0.9 and "too narrow" in law
    for label, value in CONTROLS.items():
        before = page.run(LAW) + str(page.run(PIXELS))
        set_control(page, "#analytic", label, value)
        page.wait(f"{LAW} + {PIXELS} !== {json.dumps(before)}")
    set_control(page, "#analytic", "steps", 100)
    set_control(page, "#analytic", "guidance w", 0)
    page.wait(f"{LAW}.includes('as wide as the data')")


@needs_browser
@pytest.mark.slow
def test_keys_move_centers_and_the_table_is_computed(page, tmp_path):
    explore.write_page(tmp_path / "page.html")
    page.open((tmp_path / "page.html").as_uri(), width=390, dark=True)
    page.wait(LAW)
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(21, 21, 21)"
    before = page.run("document.querySelector('.handle').ariaLabel")
    page.run("document.querySelector('.handle').focus()")
    press(page, "ArrowLeft")
    after = page.run("document.querySelector('.handle').ariaLabel")
    assert "at -1.0, 0.5" in before and "at -1.1, 0.5" in after
    button = "[...document.querySelectorAll('button')].find((b) => /table/.test(b.textContent))"
    page.run(f"{button}.click()")
    page.wait(f"document.querySelectorAll('#analytic td').length === 26 && !{button}.disabled")
    rows = page.run(
        "[...document.querySelectorAll('#analytic tr')].slice(1)"
        ".map((row) => [...row.querySelectorAll('td')].map((cell) => Number(cell.textContent)))"
    )
    *etas, (floor,) = rows
    # As in table 1 of DDIM: with 10 steps less noise is better, and sigma-hat is far off.
    assert etas[0][1] < etas[3][1] < etas[4][1]
    assert all(row[0] > row[-1] for row in etas)
    assert all(row[-1] < 3 * floor for row in etas)
    # Another setting removes the table, which no longer belongs to it; Enter does not reload.
    set_control(page, "#analytic", "seed", 4)
    page.wait("document.querySelectorAll('#analytic td').length === 0")
    page.run("document.querySelector('#analytic input[type=number]').focus()")
    press(page, "Enter")
    assert page.run("document.querySelector('#analytic input[type=number]').value") == "4"
    titles = "[...document.querySelectorAll('#analytic select')].map((e) => e.options[0].text)"
    assert "all" in page.run(titles)


@needs_browser
@pytest.mark.slow
def test_play_after_stop_shows_each_time_once(page, tmp_path):
    explore.write_page(tmp_path / "page.html")
    page.open((tmp_path / "page.html").as_uri())
    page.wait(LAW)
    time = "document.querySelector('#analytic input[type=range]').value"
    play = "[...document.querySelectorAll('button')].find((b) => /Play|Stop/.test(b.textContent))"
    times = page.run(
        f"""(async () => {{
            for (let i = 0; i < 3; i++) {play}.click();
            const times = [];
            while ({play}.textContent === 'Stop') {{
                if (times.at(-1) !== Number({time})) times.push(Number({time}));
                await new Promise((resolve) => setTimeout(resolve, 5));
            }}
            return times;
        }})()"""
    )
    assert times == sorted(times, reverse=True) and times[0] == 1000 and times[-1] == 0


@needs_browser
@pytest.mark.slow
def test_every_control_has_a_label_and_every_canvas_a_name(page, tmp_path):
    explore.write_page(tmp_path / "page.html")
    page.open((tmp_path / "page.html").as_uri())
    page.wait(LAW)
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    kinds = {"slider", "combobox", "checkbox", "spinbutton", "button", "image"}
    named = [node for node in nodes if node.get("role", {}).get("value") in kinds]
    assert len(named) >= 15
    assert all(node["name"]["value"] for node in named)


@pytest.fixture(scope="module")
def runtime_of_npm():
    """The files of onnxruntime-web; skips where npm or its registry cannot be reached."""
    try:
        return runtime.runtime_files()
    except ResourceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def site(runtime_of_npm, tiny, tmp_path_factory):
    """Address, run and folder of the page of a run that was trained for ten steps."""
    run, folder = RunDir(str(tiny())), tmp_path_factory.mktemp("site") / "<b>site & co"
    explore.write_folder(run, folder)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", run, folder
        server.shutdown()


STATUS = "document.querySelector('#reverse [role=status]')?.textContent ?? ''"
COMMAND = "document.querySelector('#reverse code').textContent"
IMAGES = """[...document.querySelectorAll('#reverse .lane:not([hidden]) .thumbnails')].map(
    (row) => [...row.querySelectorAll('canvas')].map((canvas) => {
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return [...data].filter((_, i) => i % 4 === 0);
    }))"""
RUN_NETWORK = """(async () => {
    const [x, t] = %s;
    const ort = await import('./ort.wasm.bundle.min.mjs');
    const session = await ort.InferenceSession.create('model.onnx');
    const integers = (values) => new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [8]);
    const { eps } = await session.run({
        x: new ort.Tensor('float32', Float32Array.from(x), [8, 1, 8, 8]),
        t: integers(t),
        label: integers([0, 1, 2, 3, 4, 5, 6, 7]),
    });
    return [...eps.data];
})()"""
PYTHON = {
    "ddpm": samplers.DDPM,
    "ddim": samplers.DDIM,
    "dpm_solver": DPMSolver,
    "heun": Heun,
}


def wait_for_end(page, steps):
    page.wait(f"/^Step {steps} of {steps},/.test({STATUS})")


def with_sampler(run, sampler, w):
    pipeline = copy.copy(run.pipeline)
    pipeline.set_sampler(sampler, functools.partial(ClassifierFreeGuidance, w=w))
    return pipeline


def sample(run, sampler, seed, label=None, w=0.0, count=8):
    """Return the images of sample.py, (count, H W) int."""
    pipeline = with_sampler(run, sampler, w)
    conditions = pipeline.make_conditions(count, label)
    parts = [part.x0 for part in pipeline.sample(count, conditions=conditions, seed=seed)]
    return to_uint8(torch.cat(parts)).flatten(1).int()


@needs_browser
@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("seeds", [[3], pytest.param(range(10), marks=pytest.mark.nightly)])
def test_images_in_the_page_are_those_of_sample(page, site, seeds):
    address, run, folder = site
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 20 * 2**20
    page.open(address)
    page.wait(STATUS)
    set_control(page, "#reverse", "steps", 10)
    set_control(page, "#reverse", "spacing", "uniform")
    set_control(page, "#reverse", "variance", "beta")
    set_control(page, "#reverse", "η", 0)
    run.pipeline.denoiser.variance = Beta()
    for seed in seeds:
        set_control(page, "#reverse", "seed", seed)
        for name, sampler in PYTHON.items():
            set_control(page, "#reverse", "sampler", name)
            page.wait(f"/seed={seed} .*sampler={name} /.test({COMMAND})")
            wait_for_end(page, 10)
            images = torch.tensor(page.run(IMAGES)[0])
            expected = sample(run, sampler(steps=10), seed)
            assert (images - expected).abs().max() <= 1, (name, seed)
        x = PerSampleGenerator(seed, range(8))(torch.empty(8, *run.pipeline.shape))
        t = torch.arange(1, 9) * (run.pipeline.process.steps // 8)
        eps = torch.tensor(page.run(RUN_NETWORK % json.dumps([x.flatten().tolist(), t.tolist()])))
        x0 = run.pipeline.denoiser(x, t, Condition(torch.arange(8))).x0
        alpha, sigma = (number.view(8, 1, 1, 1) for number in run.pipeline.process.alpha_sigma(t))
        assert (eps.view_as(x) - (x - alpha * x0) / sigma).abs().max() <= 1e-5
    # The command under the images is the one that makes them.
    command = page.run(COMMAND)
    words = f"seed={seed} count=8 sampler=heun sampler.steps=10 sampler.spacing=uniform"
    assert command.endswith(f"run={run.path} {words}")


@needs_browser
@pytest.mark.slow
def test_classes_guidance_comparison_and_images(page, site):
    address, run, _ = site
    page.open(address)
    page.wait(STATUS)
    for label, value in {
        "steps": 6,
        "sampler": "ddim",
        "η": 0,
        "class": 3,
        "guidance w": 2,
        "compare with": "heun",
        "samples": 4,
    }.items():
        set_control(page, "#reverse", label, value)
    page.wait("document.querySelectorAll('#reverse .lane:not([hidden])').length === 2")
    wait_for_end(page, 6)
    page.wait(f"({IMAGES})[1].length === 4")
    first, second = torch.tensor(page.run(IMAGES))
    expected = [sample(run, sampler(steps=6), 0, 3, 2.0, 4) for sampler in (samplers.DDIM, Heun)]
    assert (first - expected[0]).abs().max() <= 1
    assert (second - expected[1]).abs().max() <= 1
    # Half of the image is kept, in every sample; SDEdit at a low strength stays close to it.
    held_out = to_uint8(run.data.test.select(slice(1)).x0).flatten(1).int()
    set_control(page, "#reverse", "begin with", "inpaint")
    page.wait(f"({IMAGES})[0][0].toString() !== '{','.join(map(str, first[0].tolist()))}'")
    wait_for_end(page, 6)
    images = torch.tensor(page.run(IMAGES)[0]).view(4, 8, 8)
    assert (images[:, :, :4] == held_out.view(1, 8, 8)[:, :, :4]).all()
    assert (images[:, :, 4:] != held_out.view(1, 8, 8)[:, :, 4:]).any()
    set_control(page, "#reverse", "begin with", "edit")
    set_control(page, "#reverse", "strength, t / T", 0.05)
    page.wait(f"/^Step 2 of 2,/.test({STATUS})")
    images = torch.tensor(page.run(IMAGES)[0])
    pipeline = with_sampler(run, samplers.DDIM(steps=6), 2.0)
    data = run.data.test.select(slice(1)).x0.repeat(4, 1, 1, 1)
    samples = edit(pipeline, data, pipeline.make_conditions(4, 3), 0.05)
    assert (images - samples.tensor.flatten(1).int()).abs().max() <= 1


@needs_browser
@pytest.mark.slow
def test_steps_that_change_during_sampling_and_hidden_pixels(page, site):
    address, *_ = site
    page.open(address)
    page.wait(STATUS)
    set_control(page, "#reverse", "steps", 12)
    wait_for_end(page, 12)
    expected = page.run(IMAGES)
    # A slow network: the page reacts between steps, and shows the step that was chosen last.
    page.run(
        """(async () => {
            let now = performance.now();
            performance.now = () => (now += 100);
            const set = (type, value) => {
                const input = document.querySelector(`#reverse input[type=${type}]`);
                input.value = value;
                input.dispatchEvent(new Event('input', { bubbles: true }));
            };
            set('number', 1);
            await new Promise(requestAnimationFrame);
            set('range', 3);
            await new Promise((resolve) => setTimeout(resolve, 500));
        })()"""
    )
    assert page.run(STATUS).startswith("Step 3 of 12,")
    set_control(page, "#reverse", "seed", 0)
    page.wait(f"/^Sampling: step [1-9]/.test({STATUS})")
    wait_for_end(page, 12)
    assert page.run(IMAGES) == expected
    # The pointer hides pixels, and sampling completes them.
    set_control(page, "#reverse", "pointer", "mask")
    box = page.run(
        "(() => { const pad = document.querySelector('.pad'); pad.scrollIntoView();"
        " const { x, y } = pad.getBoundingClientRect(); return { x: x + 9, y: y + 9 }; })()"
    )
    for event in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=event, button="left", clickCount=1, **box)
    page.wait("document.querySelector('#reverse p:has(code)').hidden")
    pad = "document.querySelector('.pad').getContext('2d').getImageData(0, 0, 8, 8).data"
    page.wait(f"{pad}[0] === 128")


@needs_browser
@pytest.mark.slow
def test_page_of_a_run_from_a_file_states_how_to_serve_it(page, site):
    _, _, folder = site
    page.open((folder / "index.html").as_uri())
    page.wait("/http.server/.test(document.getElementById('status').textContent)")
    page.wait(LAW)


@needs_browser
@pytest.mark.slow
def test_page_without_webassembly_states_what_it_needs(page, site):
    address, *_ = site
    script = "delete globalThis.WebAssembly"
    page.call("Page.addScriptToEvaluateOnNewDocument", source=script)
    page.open(address)
    page.wait("/WebAssembly with SIMD/.test(document.getElementById('status').textContent)")
    page.wait(LAW)


def test_runs_that_the_page_cannot_show_are_refused(typed, tmp_path):
    points = str(tmp_path / "points")
    words = ("trainer=debug", "logger=csv", "data=gaussian_mixture", f"hydra.run.dir={points}")
    assert typed("train", *words)[0] == 0
    with pytest.raises(UserError, match=r"it makes points of 2 numbers; try .*explore"):
        explore.write_folder(RunDir(points), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="is not a run directory"):
        explore.write_folder(RunDir(str(tmp_path)), tmp_path / "x")


@torch.no_grad()
def test_defaults_are_those_of_the_run_where_the_page_has_them(tiny):
    run = RunDir(str(tiny()))
    last = run.pipeline.process.steps
    cases = [
        (samplers.DDIM(steps=7, spacing="quadratic"), {"steps": 7, "spacing": "quadratic"}),
        (samplers.DDIM(spacing=[last, last // 2, 0]), {"steps": 2, "spacing": "uniform"}),
        (Heun(steps=5, spacing="karras"), {"sampler": "heun", "spacing": "uniform"}),
        (EDM(steps=5), {"sampler": "ddim", "steps": 25}),
    ]
    for sampler, expected in cases:
        assert expected.items() <= explore._defaults(with_sampler(run, sampler, 0)).items()
    pipeline = with_sampler(run, Heun(steps=5), 2.0)
    description = explore._describe(run, pipeline)
    assert description["guided"] and description["defaults"]["w"] == 2
    pipeline.set_sampler(Heun(steps=5), functools.partial(ClassifierFreeGuidance, scale=4.0))
    assert explore._defaults(pipeline)["w"] == 3
    assert not explore._describe(run, with_sampler(run, Heun(steps=5), 0))["guided"]


def test_labels_are_words_of_the_command():
    for names in (["cat", "1", "a b", "none"], ["10", "2", "0"], ["crane", "crane"]):
        words = [explore._label(names, i) for i in range(len(names))]
        captions = [[name] for name in names]
        assert [parse_label(int(w) if w.isdigit() else w, captions) for w in words] == [
            *range(len(names))
        ]
    assert explore._label(["cat", "dog"], 1) == "1"


@pytest.mark.parametrize("bad", ['{"nll": [1]}', '{"nll": {"terms": [{"t": 1, "bits": NaN}]}}'])
def test_newest_readable_terms_are_shown(bad, tmp_path):
    terms = '{"nll": {"terms": [{"t": 1, "bits": 2.5}, {"t": 2, "bits": 0}]}}'
    for name, content in {"a": terms, "b": bad, "c": "{}"}.items():
        (tmp_path / "evaluations" / name).mkdir(parents=True)
        (tmp_path / "evaluations" / name / "metrics.json").write_text(content)
    assert explore._terms(tmp_path) == {"t": [1, 2], "bits": [2.5, 0]}


def test_targets_that_cannot_be_written_are_named(tiny, tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(ResourceError, match=r"page\.html cannot be written .*choose another out="):
        explore.write_page(tmp_path / "page.html")
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="file cannot be created"):
        explore.write_folder(RunDir(str(tiny())), tmp_path / "file")
    with pytest.raises(UserError, match=r"has other files \(file\); choose a new folder"):
        explore.write_folder(RunDir(str(tiny())), tmp_path)


def test_server_is_silent_when_a_browser_leaves(tmp_path, capsys):
    (tmp_path / "big").write_bytes(bytes(2**24))
    handler = functools.partial(explore.Handler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for _ in range(3):
            with socket.create_connection(server.server_address) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(b"GET /big HTTP/1.0\r\n\r\n")
                client.recv(1000)
        server.shutdown()
    assert capsys.readouterr() == ("", "")


def test_interrupt_ends_with_a_line(monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["explore.py"])
    with pytest.raises(SystemExit) as ended:
        run_script("", stop, paths=0)
    assert ended.value.code == 130 and capsys.readouterr().err == "stopped by SIGINT\n"


def test_hostile_names_are_text():
    run = {"name": "</script><script>alert(1)</script>", "classes": ["<img src=x>"]}
    html = render_page(run)
    assert "<script>alert" not in html and "<img src=x>" not in html
    data = re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1]
    assert json.loads(data)["run"] == run


def test_runtime_of_another_digest_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "cache_dir", lambda: tmp_path)
    folder = tmp_path / runtime.PACKAGE
    folder.mkdir()
    for name in runtime.SHA256:
        (folder / name).write_bytes(b"other")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ResourceError, match=r"install Node\.js, or copy ort\.wasm"):
        runtime.runtime_files()
    digests = {name: hashlib.sha256(b"other").hexdigest() for name in runtime.SHA256}
    monkeypatch.setattr(runtime, "SHA256", digests)
    assert {*runtime.runtime_files().values()} == {b"other"}
    # A cache that cannot be written is no reason to stop.
    (tmp_path / "file").touch()
    monkeypatch.setattr(runtime, "cache_dir", lambda: tmp_path / "file")
    monkeypatch.setattr(runtime, "_download", lambda folder: {"a": b"b"})
    assert runtime.runtime_files() == {"a": b"b"}
