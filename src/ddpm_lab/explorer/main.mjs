// The start of the page: its data, the runtime of the network, and the sections.
import { analyticSection } from "./analytic.mjs";
import { modelSections, onnxDenoiser } from "./model.mjs";
import { Process } from "./process.mjs";

const MIB = 2 ** 20;

async function loadNetwork(run, status) {
  if (location.protocol === "file:") {
    throw new Error(
      `a browser loads no network from a file; type ${run.serve} in this folder, and open http://127.0.0.1:8000`,
    );
  }
  const ort = await import("./ort.wasm.bundle.min.mjs");
  ort.env.wasm.wasmPaths = { wasm: new URL("ort-wasm-simd-threaded.wasm", location.href).href };
  ort.env.wasm.numThreads = 1;
  status.textContent = `Loading the network, ${(run.bytes / MIB).toFixed(1)} MiB`;
  const session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["wasm"] });
  return onnxDenoiser(ort, session, run.shape, run.classes !== null);
}

async function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const status = document.getElementById("status");
  const decode = (tables) =>
    Object.fromEntries(Object.entries(tables).map(([name, table]) => [name, new Process(table)]));
  const processes = decode(data.schedules);
  analyticSection(document.getElementById("analytic"), processes);
  if (!data.run) return;
  try {
    const denoise = await loadNetwork(data.run, status);
    modelSections(document.getElementById("model"), data.run, new Process(data.run.process), processes, denoise);
    status.textContent = "";
  } catch (error) {
    const simd = /simd|wasm|WebAssembly/i.test(error.message)
      ? " (it needs WebAssembly with SIMD: Chrome 91, Firefox 89, Safari 16.4)"
      : "";
    status.textContent = `The network does not run in this page: ${error.message}${simd}`;
  }
}

start();
