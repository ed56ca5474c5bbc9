"""Prints the golden values of hash_test.go: block hashes as vLLM's sha256_cbor
gives them, of tuples built here as its kv_cache_utils.py builds them. The CBOR is
written by hand, and compared with cbor2 where that is installed.
"""
import hashlib

try:
    import cbor2
except ImportError:
    cbor2 = None


def head(major, n):
    if n < 24:
        return bytes([major << 5 | n])
    for size, code in ((1, 24), (2, 25), (4, 26), (8, 27)):
        if n < 1 << 8 * size:
            return bytes([major << 5 | code]) + n.to_bytes(size, "big")


def cbor(x):
    if x is None:
        return b"\xf6"
    if isinstance(x, bytes):
        return head(2, len(x)) + x
    if isinstance(x, str):
        return head(3, len(x.encode())) + x.encode()
    if isinstance(x, int):
        return head(0, x) if x >= 0 else head(1, -1 - x)
    return head(4, len(x)) + b"".join(map(cbor, x))


def sha256_cbor(x):
    if cbor2:
        assert cbor2.dumps(x, canonical=True) == cbor(x)
    return hashlib.sha256(cbor(x)).digest()


def blocks(seed, tokens, size, adapter=None, media=(), salt=None):
    parent = sha256_cbor(seed)  # NONE_HASH with PYTHONHASHSEED=seed
    for start in range(0, len(tokens) // size * size, size):
        extra = [adapter] if adapter else []
        extra += [(m, o - start) for m, o, n in media if o < start + size and start < o + n]
        extra += [salt] if salt and start == 0 else []
        parent = sha256_cbor((parent, tuple(tokens[start : start + size]), tuple(extra) or None))
        print(parent.hex())
    print()


tokens = [0, 1, 23, 24, 255, 256, 65535, 65536, 2147483647, 7, 8, 9, 10]
blocks("0", tokens, 4)
blocks("42", tokens, 4, adapter="adapter")
blocks("0", tokens, 4, salt="salt")
blocks("0", tokens, 4, adapter="lora-1", media=[("img-a", 2, 3), ("img-b", 6, 6)], salt="s\u00e9")
blocks("0", list(range(100000, 100600)), 300)
