"""Serve a GGUF model by llama.cpp, on a free port of this machine, until the input is closed.

Run by the environment's own interpreter:
    python llamacpp_server.py [--as-shipped] [--alias NAME] MODEL [LORA ...]
Prints its address. The adapters have the scale 0 until a request sets it, by
"lora": [{"id": 0, "scale": 1.0}].

--as-shipped: llama.cpp's own settings: its KV cache is float16, and attention is fused. Without it,
attention is computed in float32, so that what differs comes from the files.
--alias: the name of the model in requests; without it, its path.
"""

import argparse
import sys

import xllamacpp

CONTEXT = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("loras", nargs="*")
    parser.add_argument("--as-shipped", action="store_true")
    parser.add_argument("--alias")
    words = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = words.model
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in words.loras]
    params.lora_init_without_apply = True
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel, params.n_ctx = 1, CONTEXT
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    params.cache_prompt = False
    params.verbosity = 0
    if words.alias:
        params.model_alias = {words.alias}
    if not words.as_shipped:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
