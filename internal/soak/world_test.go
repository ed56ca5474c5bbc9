package soak

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"reflect"
	"sync"
	"time"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/kvcache/prefix"
	"github.com/longctx/longctx/kvcache/tier"
	"github.com/longctx/longctx/tensor"
)

// source gives the choices of a run.
type source interface{ below(n int) int }

// failure ends a run.
type failure struct{ error }

func fail(format string, args ...any) { panic(failure{fmt.Errorf(format, args...)}) }

func must(what string, err error) {
	if err != nil {
		fail("%s: %w", what, err)
	}
}

// world is what actors share: a cache, an index over it, a swap space, levels of
// pages, and a cache of heads with its own swap space.
type world struct {
	together bool // actors run at the same time
	faults   bool
	format   format
	config   kvcache.Config
	shape    shape

	backend *backend
	cache   *kvcache.Cache
	index   prefix.Index
	levels  *prefix.Levels // below the index, at times; nil: none
	space   *kvcache.SwapSpace
	attend  *attention.Attention
	shared  *attention.Attention // of a prefix that several sequences have

	dir       string
	pageBytes int64
	manager   *tier.Manager
	disk      *device
	remote    *remote

	actors []*actor
	heads  *headActor

	mu   sync.Mutex
	kept map[page.Key]map[[32]byte]bool // every page that was ever put
	sure map[page.Key]bool              // put since the start of the Manager, and nothing lets it go

	counts counts
}

// counts is what a run met.
type counts struct {
	mu                                                      sync.Mutex
	steps, sequences, refused, swaps, imports, hits, policy int
	evicted, faults, cancelled, restarts, attended, lowered int64
	pages                                                   int // most used at once
}

func (c *counts) add(f func(c *counts)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(c)
}

// weak is a Hasher by which all pages collide.
type weak struct{}

func (weak) Root(*prefix.Prompt) prefix.Hash                            { return prefix.Hash{} }
func (weak) Page(prefix.Hash, *prefix.Prompt, int, int) (h prefix.Hash) { return h }

func newWorld(in source, dir string, actors int, together bool) *world {
	w := &world{together: together, dir: dir, kept: map[page.Key]map[[32]byte]bool{}, sure: map[page.Key]bool{}}
	w.faults = in.below(3) > 0
	w.format = formats[in.below(len(formats))]
	w.config = kvcache.Config{
		Layers: 1 + in.below(2), KVHeads: 1 + in.below(2), HeadDim: dim, ValueDim: dim,
		PageSize: 1 + in.below(12), Pages: 20 + in.below(120), DType: tensor.F32 + tensor.DType(in.below(3)),
	}
	if in.below(5) == 0 {
		w.config.DType = tensor.F8E4M3 + tensor.DType(in.below(2))
	}
	w.format.ofCache(&w.config, in)
	if in.below(2) == 0 {
		w.config.MaxPages = 2 * w.config.Pages
	}
	w.backend = &backend{Backend: cpu.New(cpu.Options{Workers: 1})}
	w.backend.allocs.Store(int64(in.below(6)))
	cache, err := kvcache.New(w.backend, w.config)
	if memory := (*kernel.OutOfMemoryError)(nil); errors.As(err, &memory) {
		cache, err = kvcache.New(w.backend, w.config)
	}
	w.backend.allocs.Store(0)
	if errors.Is(err, errors.ErrUnsupported) { // memory cannot grow here
		w.config.MaxPages = 0
		cache, err = kvcache.New(w.backend, w.config)
	}
	must("New", err)
	w.cache, w.config = cache, cache.Config()
	w.shape = shape{dtype: w.config.DType, layers: w.config.Layers, heads: w.config.KVHeads}
	w.space, err = w.cache.NewSwapSpace(8+in.below(w.config.Pages), in.below(w.config.CodedPages+1))
	must("NewSwapSpace", err)
	w.newIndex(in)
	heads := w.config.KVHeads
	w.attend, err = attention.New(w.backend, w.format.attention(&w.config, 2*heads, heads, attention.Causal()))
	must("attention.New", err)
	w.shared, err = attention.New(w.backend, w.format.attention(&w.config, 2*heads, heads, attention.Bidirectional()))
	must("attention.New", err)
	layout := page.Layout{Layers: w.config.Layers, PageSize: w.config.PageSize, KVHeads: w.config.KVHeads, HeadDim: dim, ValueDim: dim, DType: w.config.DType}
	w.pageBytes, err = (&page.Header{Layout: layout, Tokens: 1}).Bytes()
	must("Header.Bytes", err)
	w.remote = newRemote(uint64(in.below(256)))
	w.open(in)
	for range actors {
		w.actors = append(w.actors, &actor{w: w, in: in})
	}
	w.heads = newHeadActor(w, in)
	return w
}

func (w *world) newIndex(in source) {
	o := prefix.Options{Order: prefix.Order(in.below(4))}
	kind := in.below(4)
	if in.below(3) > 0 {
		w.levels = &prefix.Levels{Cache: w.cache, Space: w.space, Store: below{w}, Model: "levels", Timeout: 20 * time.Millisecond, Failed: w.lost}
		o.Evicted = w.levels.Evicted
		if kind == 3 {
			kind = 2 // pages of one hash would be taken for another
		}
	}
	var err error
	switch kind {
	case 0, 1:
		w.index, err = prefix.NewRadix(w.cache, o)
	case 2:
		w.index, err = prefix.NewChain(w.cache, o)
	default:
		o.Hasher = weak{}
		w.index, err = prefix.NewChain(w.cache, o)
	}
	must("a new index", err)
}

// below is the Manager of a world, which may be opened again.
type below struct{ w *world }

func (b below) Put(ctx context.Context, k page.Key, blob []byte) error {
	b.w.keep(k, blob)
	err := b.w.manager.Put(ctx, k, blob)
	must("Put of what was evicted", expected(err, b.w.faults, ctx.Err() != nil))
	if err == nil {
		b.w.counts.add(func(c *counts) { c.lowered++ })
	}
	return err
}

func (b below) Prefix(ctx context.Context, keys []page.Key, parallel int) ([][]byte, error) {
	blobs, err := b.w.manager.Prefix(ctx, keys, parallel)
	for i, blob := range blobs {
		if !b.w.known(keys[i], blob) {
			fail("the page of %v is none that was put", keys[i])
		}
	}
	return blobs, err
}

// lost sees that an evicted page was lost for a reason that can be.
func (w *world) lost(_ prefix.Evicted, err error) {
	var swap *kvcache.OutOfSwapError
	switch {
	case errors.As(err, &swap), w.faults && errors.Is(err, errInjected), errors.Is(err, context.DeadlineExceeded):
	default:
		must("an evicted page", expected(err, w.faults, true))
	}
}

// open starts the levels, with what the disk and the remote store have.
func (w *world) open(in source) {
	host, err := tier.NewHost(tier.Limits{Bytes: w.pageBytes * int64(2+in.below(8)), Order: tier.Order(in.below(3))})
	must("NewHost", err)
	disk, err := tier.OpenDisk(w.dir, tier.DiskOptions{NoSync: true, Limits: tier.Limits{Bytes: w.pageBytes * int64(4+in.below(30)), Order: tier.Order(in.below(3))}})
	must("OpenDisk", err)
	w.disk = &device{Disk: disk}
	last := tier.Level{Name: "remote", Store: w.remote, WriteThrough: in.below(3) == 0, Queue: 4, Workers: 2}
	if w.faults {
		last.Timeout, last.Rest = 3*time.Millisecond, 20*time.Millisecond
	}
	w.manager, err = tier.NewManager(tier.Options{}, tier.Level{Name: "host", Store: host, Queue: 1 + in.below(4)}, tier.Level{Name: "disk", Store: w.disk}, last)
	must("NewManager", err)
	clear(w.sure)
}

// restart ends the levels, written or not.
func (w *world) restart(in source) string {
	var unwritten *tier.UnwrittenError
	if err := w.manager.Close(); err != nil && !errors.As(err, &unwritten) {
		fail("Manager.Close: %w", err)
	}
	before := w.disk.injected.Load()
	w.open(in)
	w.counts.add(func(c *counts) { c.restarts, c.faults = c.restarts+1, c.faults+before })
	return "restart the levels"
}

// ill changes how the devices do.
func (w *world) ill(in source) string {
	if !w.faults {
		return "all devices are well"
	}
	h := health(in.below(int(healths)))
	w.remote.health.Store(int32(h))
	w.disk.full.Store(in.below(4) == 0)
	if in.below(3) == 0 {
		done, err := damage(w.dir, in.below)
		must("damage", err)
		if done {
			w.counts.add(func(c *counts) { c.faults++ })
		}
	}
	return fmt.Sprintf("health %d, disk full %v", h, w.disk.full.Load())
}

// flush waits for what is written in the background.
func (w *world) flush() string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := w.manager.Flush(ctx)
	must("Flush", ctx.Err())
	must("Flush", expected(err, w.faults, false))
	if w.together || w.faults {
		return "flush"
	}
	for k := range w.sure { // one of them
		if _, err := w.manager.Get(ctx, k, nil); err != nil {
			fail("Get of page %v, which was put: %w", k, err)
		}
		break
	}
	return "flush"
}

// keep notes a page that is put.
func (w *world) keep(k page.Key, b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.kept[k] == nil {
		w.kept[k] = map[[32]byte]bool{}
	}
	w.kept[k][sha256.Sum256(b)] = true
}

func (w *world) known(k page.Key, b []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.kept[k][sha256.Sum256(b)]
}

// snapshot is what the cache shows of itself but its rows.
type snapshot struct {
	stats     kvcache.Stats
	batch     kernel.Batch
	positions [][]int32
}

func (w *world) snapshot() (s snapshot) {
	if w.together {
		return s
	}
	s.stats = w.cache.Stats()
	var ids []kvcache.ID
	for _, a := range w.actors {
		ids = append(ids, a.live...)
	}
	must("LowerKV", w.cache.Sequences(ids...).LowerKV(&s.batch))
	for _, id := range ids {
		p, err := w.cache.Positions(id, nil)
		must("Positions", err)
		s.positions = append(s.positions, p)
	}
	return s
}

// unchanged sees that a call that was refused has changed nothing.
func (w *world) unchanged(what string, before snapshot) {
	if after := w.snapshot(); !reflect.DeepEqual(before, after) {
		fail("%s was refused and changed\n%+v to\n%+v", what, before, after)
	}
}

// check recounts all there is. At a quiet point, when nothing else runs, it also
// reads all of it, and fills every free page with NaN.
func (w *world) check(quiet bool) {
	must("Cache.CheckIntegrity", w.cache.CheckIntegrity())
	must("Index.CheckIntegrity", w.index.CheckIntegrity())
	must("HeadCache.CheckIntegrity", w.heads.cache.CheckIntegrity())
	s := w.cache.Stats()
	if s.Free+s.Used+s.Cached != s.Pages || s.CodedFree+s.CodedUsed+s.CodedCached != s.CodedPages {
		fail("pages are lost: %+v", s)
	}
	w.counts.add(func(c *counts) { c.pages = max(c.pages, s.Used+s.CodedUsed) })
	if !quiet {
		return
	}
	must("SwapSpace.CheckIntegrity", w.space.CheckIntegrity())
	must("HeadSwapSpace.CheckIntegrity", w.heads.space.CheckIntegrity())
	visible := map[int32]int{}
	coded := map[int32]int{}
	sequences, tokens := 0, int64(0)
	for _, a := range w.actors {
		for _, id := range a.live {
			b := w.read(id, a.model[id])
			for k, p := range b.Pages.Indices {
				if b.Pages.IsCoded(k) {
					coded[p]++
				} else {
					visible[p]++
				}
			}
			sequences, tokens = sequences+1, tokens+int64(len(a.model[id].tokens))
		}
		w.readAll(a)
	}
	if s.Sequences != sequences || s.Tokens != tokens || s.Used != len(visible) || s.CodedUsed != len(coded) {
		fail("%+v, want %d tokens of %d sequences in %d and %d pages", s, tokens, sequences, len(visible), len(coded))
	}
	held := w.index.Stats().Pages
	for _, a := range w.actors {
		for _, m := range a.modules {
			held += len(m.Pages)
		}
	}
	if s.Holds != int64(held) {
		fail("%d holds, and the index and modules have %d pages", s.Holds, held)
	}
	w.poison(visible)
	w.heads.check()
}

// poison fills the plain pages that nobody has with NaN, and sees that each page is
// shared by as many as the model says.
func (w *world) poison(visible map[int32]int) {
	cached := 0
	for p := range w.cache.Config().Pages {
		sequences, holds := w.cache.Holders(kvcache.Page(p))
		if sequences != visible[int32(p)] {
			fail("page %d has %d sequences, want %d", p, sequences, visible[int32(p)])
		}
		if holds > 0 {
			if sequences == 0 {
				cached++
			}
		}
		if holds > 0 || sequences > 0 {
			continue
		}
		for layer := range w.config.Layers {
			for _, v := range []tensor.View{w.cache.KeyView(layer), w.cache.ValueView(layer)} {
				n := v.Stride[0] * v.DType.Size()
				b := v.Bytes()[int64(p)*n:][:n]
				for i := range b {
					b[i] = 0xff // a NaN of every type
				}
			}
		}
	}
	if s := w.cache.Stats(); s.Cached != cached {
		fail("%d pages are cached, want %d", s.Cached, cached)
	}
}

// read compares all of a sequence with the model, and returns its table.
func (w *world) read(id kvcache.ID, s *sequence) *kernel.Batch {
	var b kernel.Batch
	must("LowerKV", w.cache.Sequences(id).LowerKV(&b))
	n := len(s.tokens)
	if int(b.SeqLens[0]) != n {
		fail("sequence %d has %d keys, want %d", id, b.SeqLens[0], n)
	}
	positions, err := w.cache.Positions(id, nil)
	must("Positions", err)
	for j, p := range positions {
		if p != s.tokens[j].position {
			fail("sequence %d: key %d is at position %d, want %d", id, j, p, s.tokens[j].position)
		}
	}
	for layer := range w.config.Layers {
		key, value, err := w.cache.Gather(layer, id)
		must("Gather", err)
		for kind, v := range []tensor.View{key, value} {
			w.shape.compare(fmt.Sprintf("sequence %d", id), layer, kind, v, s.tokens, func(j int) float64 {
				if b.Pages.IsCoded(j / w.config.PageSize) {
					return w.format.tolerance
				}
				return 0
			})
		}
	}
	return &b
}

// compare compares the rows of tokens with what the model stored.
func (g shape) compare(what string, layer, kind int, v tensor.View, tokens []token, tolerance func(j int) float64) {
	wide := g.span(tokens)
	for j := range tokens {
		most := tolerance(j) * wide
		for h := range g.heads {
			for d := range dim {
				got, want := v.At(int64(j), int64(h), int64(d)), g.element(&tokens[j], layer, kind, h, d)
				if !(math.Abs(float64(got)-float64(want)) <= most) {
					fail("%s: key %d, layer %d, kind %d, head %d, feature %d is %v, want %v ± %v", what, j, layer, kind, h, d, got, want, most)
				}
			}
		}
	}
}

// span is how much wider than 2 the largest element of merged tokens is: a merge may
// add values up.
func (g shape) span(tokens []token) float64 {
	wide := 2.0
	for _, t := range tokens {
		for _, x := range t.merged {
			wide = max(wide, math.Abs(float64(x)))
		}
	}
	return wide / 2
}

// readAll attends to the sequences of an actor, and compares that with the same in
// float64 over the rows that read has found to be right.
func (w *world) readAll(a *actor) {
	var ids []kvcache.ID
	var lens []int
	for _, id := range a.live {
		if len(a.model[id].tokens) > 0 {
			ids, lens = append(ids, id), append(lens, 1)
		}
	}
	if len(ids) == 0 {
		return
	}
	heads := 2 * w.config.KVHeads
	cascade := prefix.NewCascade(w.cache.Sequences(ids...))
	must("Cascade.Plan", cascade.Plan(lens))
	run := func(layer int, by *attention.Attention, step attention.Step) kernel.Args {
		args := kernel.Args{Query: queries(len(ids), heads), Out: tensor.New(tensor.F32, int64(len(ids)), int64(heads), dim), LSE: tensor.New(tensor.F32, int64(len(ids)), int64(heads))}
		must("Plan, Bind, Run", errors.Join(by.Plan(step), w.cache.Bind(layer, &args), by.Run(&args)))
		return args
	}
	for layer := range w.config.Layers {
		args := run(layer, w.attend, attention.Step{QueryLens: lens, KV: w.cache.Sequences(ids...)})
		a := run(layer, w.shared, attention.Step{KV: cascade.Shared(), QueryLens: cascade.SharedQueryLens(), QueryPos: cascade.QueryPos()})
		b := run(layer, w.attend, attention.Step{KV: cascade.Tails(), QueryLens: lens, QueryPos: cascade.QueryPos()})
		must("Merge", w.backend.Merge(&kernel.MergeArgs{OutA: a.Out, LSEA: a.LSE, OutB: b.Out, LSEB: b.LSE, Out: a.Out, LSE: a.LSE}))
		for i, id := range ids {
			key, value, err := w.cache.Gather(layer, id)
			must("Gather", err)
			compareAttention(fmt.Sprintf("sequence %d, layer %d", id, layer), args, i, key, value)
			compareAttention(fmt.Sprintf("sequence %d, layer %d, of a cascade", id, layer), a, i, key, value)
		}
	}
	w.counts.add(func(c *counts) { c.attended += int64(len(ids)) })
}

func queries(tokens, heads int) tensor.View {
	v := tensor.New(tensor.F32, int64(tokens), int64(heads), dim)
	for i := range v.F32s() {
		v.F32s()[i] = raw(uint64(i), 0, 0, 0, 0)
	}
	return v
}

// compareAttention compares query token i of a step with float64.
func compareAttention(what string, a kernel.Args, i int, key, value tensor.View) {
	group := int(a.Query.Shape[1] / key.Shape[1])
	for h := range int(a.Query.Shape[1]) {
		kv := int64(h / group)
		scores, most := make([]float64, key.Shape[0]), math.Inf(-1)
		for j := range scores {
			for d := range int64(dim) {
				scores[j] += float64(a.Query.At(int64(i), int64(h), d)) * float64(key.At(int64(j), kv, d))
			}
			scores[j] /= math.Sqrt(dim)
			most = max(most, scores[j])
		}
		var out [dim]float64
		total := 0.0
		for j, x := range scores {
			p := math.Exp(x - most)
			total += p
			for d := range out {
				out[d] += p * float64(value.At(int64(j), kv, int64(d)))
			}
		}
		tolerance := 2e-5 * max(1, widest(value)) * max(1, math.Abs(most)/8) // of a float32 sum over some hundred keys
		for d, want := range out {
			if got := float64(a.Out.At(int64(i), int64(h), int64(d))); !(math.Abs(got-want/total) <= tolerance) {
				fail("attention of %s, head %d, feature %d is %v, want %v", what, h, d, got, want/total)
			}
		}
	}
}

func widest(v tensor.View) (most float64) {
	for j := range v.Shape[0] {
		for h := range v.Shape[1] {
			for d := range v.Shape[2] {
				most = max(most, math.Abs(float64(v.At(j, h, d))))
			}
		}
	}
	return most
}

// close ends all, and sees that nothing is left.
func (w *world) close() {
	w.backend.disarm()
	w.remote.health.Store(int32(well))
	w.disk.full.Store(false)
	for _, a := range w.actors {
		a.end()
	}
	w.heads.end()
	w.index.Clear()
	must("in the end", errors.Join(w.cache.CheckIntegrity(), w.index.CheckIntegrity(), w.space.CheckIntegrity(), w.heads.cache.CheckIntegrity(), w.heads.space.CheckIntegrity()))
	if s := w.cache.Stats(); s.Free != s.Pages || s.CodedFree != s.CodedPages || s.Sequences != 0 || s.Reserved != 0 || s.Holds != 0 {
		fail("an empty cache has %+v", s)
	}
	if s := w.heads.cache.Stats(); s.Free != s.Pages || s.CodedFree != s.CodedPages || s.Sequences != 0 {
		fail("an empty cache of heads has %+v", s)
	}
	for _, s := range []kvcache.SwapStats{w.space.Stats(), w.heads.space.Stats()} {
		if s.Free != s.Pages || s.CodedFree != s.CodedPages || s.Sequences != 0 {
			fail("an empty swap space has %+v", s)
		}
	}
	w.flush()
	must("Close", errors.Join(w.manager.Close(), w.space.Close(), w.heads.space.Close(), w.cache.Close(), w.heads.cache.Close()))
	w.backend.Close()
	w.counts.add(func(c *counts) {
		c.evicted += w.index.Stats().FreedPages
		c.faults += w.backend.injected.Load() + w.remote.injected.Load() + w.disk.injected.Load()
	})
}
