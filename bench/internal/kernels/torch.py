# Times torch.nn.functional.scaled_dot_product_attention. One JSON object a
# line comes on stdin, one goes back on stdout; see torch.go.
import json
import sys
import time


def main():
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    attend = torch.nn.functional.scaled_dot_product_attention
    case = None

    def setup(c):
        torch.set_num_threads(max(c["threads"], 1))
        device = c["device"]
        dtype = getattr(torch, c["dtype"])
        groups, group, n, queries, dim = c["kv_heads"], c["heads"] // c["kv_heads"], c["length"], c["queries"], c["head_dim"]
        # One query of a group of heads is as many queries of one head: no key
        # is read twice, and none is hidden from any of them.
        folded = queries == 1
        shape = (1, groups, group, dim) if folded else (1, groups * group, queries, dim)
        query = torch.randn(shape, device=device).to(dtype)
        block = torch.randn(1, groups, n, dim, device=device).to(dtype)
        layers = [(block.clone(), block.clone()) for _ in range(c["layers"])]
        options = {"is_causal": c["causal"]}
        if not folded and group > 1:
            options["enable_gqa"] = True
        return {"query": query, "layers": layers, "options": options, "next": 0, "backward": c.get("backward", False), "device": device}

    def clock():
        if case["device"] == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def gradients(backend, n):
        inputs = [x.requires_grad_() for x in (case["query"], *case["layers"][0])]
        with sdpa_kernel(backends[backend]):
            out = attend(*inputs, **case["options"])
            slope = torch.randn_like(out)
            start = clock()
            for _ in range(n):
                torch.autograd.grad(out, inputs, slope, retain_graph=True)
            return (clock() - start) / n

    def run(backend, n):
        if case["backward"]:
            return gradients(backend, n)
        with torch.inference_mode(), sdpa_kernel(backends[backend]):
            start = clock()
            for _ in range(n):
                key, value = case["layers"][case["next"]]
                case["next"] = (case["next"] + 1) % len(case["layers"])
                attend(case["query"], key, value, **case["options"])
            return (clock() - start) / n

    print(json.dumps({"version": torch.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "case" in request:
                case = None  # its memory, before the next takes some
                case = setup(request["case"])
                answer = {}
            else:
                answer = {"seconds": run(request["backend"], request["n"])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(answer), flush=True)


main()
