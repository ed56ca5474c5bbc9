"""Trains the byte-level model that bench ships, in two stages:

    export OPENBLAS_NUM_THREADS=1
    python3 train.py grid 2 grid.safetensors
    python3 train.py free 4 model.safetensors grid.safetensors

on the Go files of Go 1.26.8's standard library (go env GOROOT), with PyTorch
1.13 on one core. Windows are BOS and 128 bytes. In the first stage the lines to
recall lie on a grid of 20 bytes, which the model learns in some 2,000 steps: it
copies from multiples of 20 bytes back, and of little use elsewhere. The second
starts from there with lines at any distance, and repeated words, and the model
learns in a few hundred steps to look for the name. Started at once with the
second stage, two seeds had learnt nothing of it after 4,000 and 10,000 steps.

In each stage the learning rate stays up until recall passes 0.97 and 4,000
steps are done, or the time is over, and falls to 2 % over 2,500 steps. The seed
fixes windows and initial weights. `go run ./bench train` is the same in Go,
through the library's own backward; it is slower.
"""
import glob, json, math, os, random, struct, subprocess, sys, time
import torch, torch.nn as nn, torch.nn.functional as F

DIM, LAYERS, HEADS, KVH, HD, FF, VOCAB, CTX, BASE, BOS, EPS = 128, 3, 4, 2, 32, 384, 257, 128, 500.0, 256, 1e-5
stage, seed, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
start = sys.argv[4] if len(sys.argv) > 4 else None
maxsec = {'grid': 3000, 'free': 1300}[stage]
torch.set_num_threads(1); torch.manual_seed(seed); rng = random.Random(seed)

HELD = ('net/http/', 'go/types/', 'encoding/json/', 'database/sql/', 'text/template/')
def corpus():
    root = subprocess.check_output(['go', 'env', 'GOROOT'], text=True).strip() + '/src'
    names = sorted(glob.glob(root + '/**/*.go', recursive=True))
    keep = []
    for n in names:
        r = n[len(root) + 1:]
        if '/testdata/' in n or 'vendor/' in r or r.startswith(HELD) or os.path.getsize(n) > 400000: continue
        if r.endswith('tables.go') or '/ssa/rewrite' in n or 'zsys' in n or 'zerrors' in n: continue
        keep.append(n)
    return b'\n'.join(open(n, 'rb').read() for n in keep)

class Norm(nn.Module):
    def __init__(s): super().__init__(); s.weight = nn.Parameter(torch.ones(DIM))
    def forward(s, x): return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * s.weight
lin = lambda a, b: nn.Linear(a, b, bias=False)
ang = torch.arange(CTX + 1).float()[:, None] * BASE ** (-torch.arange(0, HD, 2).float() / HD)
COS, SIN = ang.cos(), ang.sin()
MASK = torch.full((CTX, CTX), -1e30).triu(1)
def rot(x):
    a, b = x[..., :HD // 2], x[..., HD // 2:]; c, s = COS[:x.shape[-2]], SIN[:x.shape[-2]]
    return torch.cat([a * c - b * s, b * c + a * s], -1)
class Block(nn.Module):
    def __init__(s):
        super().__init__()
        s.n1, s.n2 = Norm(), Norm()
        s.qkv, s.o = lin(DIM, (HEADS + 2 * KVH) * HD), lin(HEADS * HD, DIM)
        s.gu, s.down = lin(DIM, 2 * FF), lin(FF, DIM)
    def forward(s, x):
        B, T, _ = x.shape
        q, k, v = s.qkv(s.n1(x)).split([HEADS * HD, KVH * HD, KVH * HD], -1)
        q = rot(q.view(B, T, HEADS, HD).transpose(1, 2)) / math.sqrt(HD)
        k = rot(k.view(B, T, KVH, HD).transpose(1, 2)); v = v.view(B, T, KVH, HD).transpose(1, 2)
        q = q.reshape(B, KVH, HEADS // KVH * T, HD)
        p = (q @ k.transpose(-1, -2)).view(B, KVH, HEADS // KVH, T, T) + MASK[:T, :T]
        y = (p.softmax(-1).reshape(B, KVH, HEADS // KVH * T, T) @ v).view(B, HEADS, T, HD)
        x = x + s.o(y.transpose(1, 2).reshape(B, T, HEADS * HD))
        a, b = s.gu(s.n2(x)).chunk(2, -1)
        return x + s.down(F.silu(a) * b)
class LM(nn.Module):
    def __init__(s):
        super().__init__()
        s.emb = nn.Embedding(VOCAB, DIM); s.blocks = nn.ModuleList(Block() for _ in range(LAYERS)); s.norm = Norm()
        for n, p in s.named_parameters():
            if p.dim() == 2: nn.init.normal_(p, 0, .02 / (math.sqrt(2 * LAYERS) if n.endswith(('o.weight', 'down.weight')) else 1))
    def forward(s, ids):
        x = s.emb(ids)
        for b in s.blocks: x = b(x)
        return s.norm(x) @ s.emb.weight.T

def pair(): return ''.join(rng.choice('abcdefghijklmnopqrstuvwxyz') for _ in range(3)), ''.join(rng.choice('0123456789') for _ in range(5))
def spread(count, width, length):
    """Starts of count pieces of width, in order, with the room left over shared out at random between them."""
    cuts = sorted(rng.randint(0, length - count * width) for _ in range(count))
    return [c + i * width for i, c in enumerate(cuts)]

def plant(buf):
    """Writes one to three KEY lines and later GETs of them into buf; returns where the digits of each GET start."""
    n = 20                                             # bytes of "\n// KEY abc = 12345\n", and of GET
    if stage == 'free':
        at_line = spread(rng.randint(2, 6), n, len(buf))
    else:
        shift = rng.randrange(len(buf) % n + 1)
        at_line = [shift + i * n for i in sorted(rng.sample(range(len(buf) // n), rng.randint(2, 6)))]
    nk = rng.randint(1, min(3, len(at_line) - 1))
    keys, at = [], []
    for i, p in enumerate(at_line):
        if i == 0 or len(keys) < nk and rng.random() < .5:
            keys.append(pair()); k, v = keys[-1]; w = 'KEY'
        else:
            k, v = rng.choice(keys); w = 'GET'; at.append(p + 14)
        buf[p:p + n] = f'\n// {w} {k} = {v}\n'.encode()
    return at

def repeat(buf):
    """Writes a random word into buf two or three times; returns the range of each copy after its first letters. It teaches copying sooner than numbers do."""
    n, times = rng.randint(8, 30), rng.randint(2, 3)
    word = ''.join(rng.choice('abcdefghijklmnopqrstuvwxyz0123456789') for _ in range(n)).encode()
    copies = spread(times, n, len(buf))
    for p in copies: buf[p:p + n] = word
    return [(p + 3, p + n) for p in copies[1:]]

def save(m):
    t = {}
    sd = m.state_dict()
    t['model.embed_tokens.weight'] = sd['emb.weight']; t['model.norm.weight'] = sd['norm.weight']
    for i in range(LAYERS):
        p, s = f'model.layers.{i}.', f'blocks.{i}.'
        q, k, v = sd[s + 'qkv.weight'].split([HEADS * HD, KVH * HD, KVH * HD], 0); g, u = sd[s + 'gu.weight'].chunk(2, 0)
        t |= {p + 'input_layernorm.weight': sd[s + 'n1.weight'], p + 'post_attention_layernorm.weight': sd[s + 'n2.weight'],
              p + 'self_attn.q_proj.weight': q, p + 'self_attn.k_proj.weight': k, p + 'self_attn.v_proj.weight': v,
              p + 'self_attn.o_proj.weight': sd[s + 'o.weight'], p + 'mlp.gate_proj.weight': g, p + 'mlp.up_proj.weight': u,
              p + 'mlp.down_proj.weight': sd[s + 'down.weight']}
    cfg = dict(architectures=['LlamaForCausalLM'], hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KVH,
               head_dim=HD, intermediate_size=FF, vocab_size=VOCAB, max_position_embeddings=CTX, rope_theta=BASE, rms_norm_eps=EPS, bos_token_id=BOS, tie_word_embeddings=True)
    hdr, off = {'__metadata__': {'config': json.dumps(cfg)}}, 0
    for n, x in t.items():
        hdr[n] = dict(dtype='F32', shape=list(x.shape), data_offsets=[off, off + 4 * x.numel()]); off += 4 * x.numel()
    h = json.dumps(hdr).encode(); h += b' ' * (-len(h) % 8)
    with open(out + '.tmp', 'wb') as f:
        f.write(struct.pack('<Q', len(h)) + h)
        for x in t.values(): f.write(x.contiguous().numpy().tobytes())
    os.replace(out + '.tmp', out)

def load(m, name):
    with open(name, 'rb') as f:
        h = json.loads(f.read(struct.unpack('<Q', f.read(8))[0])); d = f.read()
    def t(k):
        a, b = h[k]['data_offsets']; return torch.frombuffer(bytearray(d[a:b]), dtype=torch.float32).view(h[k]['shape'])
    sd = {'emb.weight': t('model.embed_tokens.weight'), 'norm.weight': t('model.norm.weight')}
    for i in range(LAYERS):
        p, s = f'model.layers.{i}.', f'blocks.{i}.'
        sd |= {s + 'n1.weight': t(p + 'input_layernorm.weight'), s + 'n2.weight': t(p + 'post_attention_layernorm.weight'),
               s + 'qkv.weight': torch.cat([t(p + f'self_attn.{x}_proj.weight') for x in 'qkv']), s + 'o.weight': t(p + 'self_attn.o_proj.weight'),
               s + 'gu.weight': torch.cat([t(p + 'mlp.gate_proj.weight'), t(p + 'mlp.up_proj.weight')]), s + 'down.weight': t(p + 'mlp.down_proj.weight')}
    m.load_state_dict(sd)

data = corpus(); print('corpus bytes', len(data), flush=True)
m = LM()
if start: load(m, start)
print("parameters", sum(p.numel() for p in m.parameters()), flush=True)
opt = torch.optim.AdamW(m.parameters(), lr=3e-3, betas=(.9, .95), weight_decay=.05)
B, PEAK, WARM, DECAY = 16, 3e-3, 100, 2500
t0, step, rec, bpb, decay_from = time.time(), 0, 0., 8., None
while True:
    if decay_from is None and (rec > .97 and step > 4000 or time.time() - t0 > maxsec): decay_from = step; print('decay from', step, flush=True)
    if decay_from is not None and step >= decay_from + DECAY: break
    lr = PEAK * min(1, (step + 1) / WARM) * (1 if decay_from is None else max(.02, 1 - (step - decay_from) / DECAY))
    for g in opt.param_groups: g['lr'] = lr
    X, W, A = [], torch.ones(B, CTX), []
    for b in range(B):
        o = rng.randrange(len(data) - CTX); buf = bytearray(data[o:o + CTX])
        if b % 4 < 2 or b % 4 == 2 and stage == 'grid':
            for a in plant(buf): W[b, a:a + 5] = 5.; A.append((b, a))
        elif b % 4 == 2:
            for lo, hi in repeat(buf): W[b, lo:hi] = 2.
        X.append(torch.cat([torch.tensor([BOS]), torch.frombuffer(buf, dtype=torch.uint8).long()]))
    X = torch.stack(X); lg = m(X[:, :-1])              # input t is BOS or byte t-1, target t is byte t
    l = F.cross_entropy(lg.reshape(-1, VOCAB), X[:, 1:].reshape(-1), reduction='none').view(B, CTX)
    loss = (l * W).sum() / W.sum()
    opt.zero_grad(); loss.backward(); nn.utils.clip_grad_norm_(m.parameters(), 1.); opt.step(); step += 1
    e = l[3::4].mean().item() / math.log(2); bpb = .98 * bpb + .02 * e
    p = lg.argmax(-1); r = sum(bool((p[b, a:a + 5] == X[b, a + 1:a + 6]).all()) for b, a in A) / max(1, len(A)); rec = .98 * rec + .02 * r
    if step % 250 == 0: print(f'{step} {time.time()-t0:.0f}s bpb {bpb:.3f} recall {rec:.2f} lr {lr:.1e} tok/s {step*B*CTX/(time.time()-t0):.0f}', flush=True)
    if step % 1000 == 0: save(m)
save(m); print('done', step, f'bpb {bpb:.3f} recall {rec:.2f}', flush=True)
