package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/bench/internal/task"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/kvcache/codec"
	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/kvcache/policy"
	"github.com/longctx/longctx/kvcache/prefix"
	"github.com/longctx/longctx/kvcache/tier"
	"github.com/longctx/longctx/tensor"
)

const f16 = tensor.F16

// must is a codec that there is.
func must(name string) codec.Entry {
	e, err := codec.Find(name)
	if err != nil {
		panic(err)
	}
	return e
}

// cacheTiers are the tiers that pages go to.
var cacheTiers = []struct {
	Name    string `json:"name"`
	Package string `json:"package"`
	Keeps   string `json:"keeps"`
}{
	{"device", "kvcache", "pages that attention reads, in the memory of the backend"},
	{"swap", "kvcache.SwapSpace", "pages of sequences that wait, in memory of the host, pinned for a device"},
	{"host", "kvcache/tier.Host", "pages by key, in memory of the host, checksummed"},
	{"disk", "kvcache/tier.Disk", "pages by key, in files that a crash leaves whole"},
	{"redis", "kvcache/tier/redis", "pages by key, on Redis or Valkey; a module of its own"},
	{"s3", "kvcache/tier/s3", "pages by key, in a bucket; a module of its own"},
}

// listCache lists policies, codecs and tiers.
func listCache(w io.Writer, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"policies": policy.Policies(), "codecs": codec.Codecs(), "tiers": cacheTiers})
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	dash := func(s string) string {
		if s == "" {
			return "–"
		}
		return s
	}
	fmt.Fprintln(t, "policy\tkind\tneeds\tcost\tlimits\tpaper")
	for _, e := range policy.Policies() {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", e.Name, e.Kind, dash(e.Needs), e.Cost, dash(e.Limits), e.Paper)
	}
	fmt.Fprintln(t, "\ncodec\tneeds\tpaper")
	for _, e := range codec.Codecs() {
		fmt.Fprintf(t, "%s\t%s\t%s\n", e.Name, dash(e.Needs), dash(e.Paper))
	}
	fmt.Fprintln(t, "\ntier\tpackage\tkeeps")
	for _, x := range cacheTiers {
		fmt.Fprintf(t, "%s\t%s\t%s\n", x.Name, x.Package, x.Keeps)
	}
	return t.Flush()
}

// calibrate finds what codecs need of the model, from a text that is not judged: the
// levels of KVQuant, of each channel of a page of keys and of each value from the
// least to the largest, and the bases of Palu.
func (h *holdings) calibrate(b kernel.Backend) error {
	text := task.Material{Text: h.material.Text, Trained: h.material.Trained, Seed: h.seed + 1}
	windows, err := text.Windows(1, h.length, h.length)
	if err != nil {
		return err
	}
	top := float32(kernel.Int4.MaxCode())
	var keys, values []float32
	if err := h.rows(b, windows[0].Tokens, kernel.PreRoPE, func(_, _ int, k, v []float32, dim int) error {
		for p := 0; p+h.page*dim <= len(k); p += h.page * dim {
			for d := range dim {
				column := make([]float32, h.page)
				for r := range column {
					column[r] = k[p+r*dim+d]
				}
				keys = append(keys, spread(column, top)...)
			}
		}
		for ; len(v) > 0; v = v[dim:] {
			values = append(values, spread(v[:dim], top)...)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, x := range []struct {
		to      *tensor.View
		samples []float32
	}{{&h.levels.Key, keys}, {&h.levels.Value, values}} {
		found, err := codec.NUQ(kernel.Int4, x.samples, nil)
		if err != nil {
			return err
		}
		*x.to = tensor.FromF32(found, 1, int64(len(found)))
	}
	c := &h.model.Config
	var palu kvcache.Config
	palu.HeadDim, palu.ValueDim = c.HeadDim, c.HeadDim
	must("palu").Apply(&palu)
	bases := make([][2]tensor.View, c.Layers)
	for i := range bases {
		bases[i][0] = tensor.New(tensor.F32, int64(c.KVHeads), int64(c.HeadDim), int64(palu.HeadDim))
		bases[i][1] = tensor.New(tensor.F32, int64(c.KVHeads), int64(c.HeadDim), int64(palu.ValueDim))
	}
	err = h.rows(b, windows[0].Tokens, kernel.PostRoPE, func(layer, head int, k, v []float32, dim int) error {
		for i, rows := range [][]float32{k, v} {
			rank := []int{palu.HeadDim, palu.ValueDim}[i]
			one, err := codec.Principal(rows, dim, rank)
			if err != nil {
				return err
			}
			copy(bases[layer][i].F32s()[head*dim*rank:], one.F32s())
		}
		return nil
	})
	for _, x := range bases {
		h.bases = append(h.bases, codec.Orthogonal(x[0], x[1]))
	}
	return err
}

// rows runs a text and gives the keys and values of each head.
func (h *holdings) rows(b kernel.Backend, tokens []int32, storage kernel.KeyStorage, use func(layer, head int, k, v []float32, dim int) error) (err error) {
	how := h.config(coder{must("f16")}, len(tokens))
	how.Cache.KeyStorage = storage
	m, err := model.NewHeld(h.model, b, how)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if _, err := m.Extend(tokens, 1, nil); err != nil {
		return err
	}
	if err := m.Load(); err != nil {
		return err
	}
	for i, x := range m.Sequence.Heads {
		if err := use(i/m.Sequence.KVHeads, i%m.Sequence.KVHeads, rowsOf(x.Key), rowsOf(x.Value), int(x.Key.Shape[1])); err != nil {
			return err
		}
	}
	return nil
}

// rowsOf widens all of a view.
func rowsOf(v tensor.View) (out []float32) {
	for i := range v.Shape[0] {
		for d := range v.Shape[1] {
			out = append(out, v.At(i, d))
		}
	}
	return out
}

// spread puts a group between 0 and top.
func spread(x []float32, top float32) []float32 {
	lo, hi := slices.Min(x), slices.Max(x)
	out := make([]float32, len(x))
	for i, v := range x {
		if hi > lo {
			out[i] = (v - lo) / (hi - lo) * top
		}
	}
	return out
}

// cachePrefix is what an index of prefixes saves.
type cachePrefix struct {
	Users   int     `json:"users"`
	Shared  int     `json:"shared_tokens"`
	Own     int     `json:"own_tokens"` // of each turn
	Turn    int     `json:"turn"`
	HitRate float64 `json:"hit_rate"` // part of the tokens of prompts that was there
	Without float64 `json:"without_ms"`
	With    float64 `json:"with_ms"` // to the first token, medians
	Speedup float64 `json:"speed_up"`
	Apart   float64 `json:"apart"` // largest difference of logits with and without, of the largest of them
}

// prefix has users with a long prompt in common take two turns, with an index and
// without one.
func (o *cacheFlags) prefix(ctx context.Context, std streams, b kernel.Backend, r *cacheResults) (err error) {
	h, err := o.prepare(r)
	if err != nil {
		return err
	}
	users, shared, own := 8, 2048, 64
	if o.quick {
		users, shared = 3, 512
	}
	pages := users * 2 * ((shared+2*own)/o.page + 2)
	with, err := model.NewReader(h.model, b, kernel.Exact, h.rotation, pages, o.page)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, with.Close()) }()
	without, err := model.NewReader(h.model, b, kernel.Exact, h.rotation, pages, o.page)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, without.Close()) }()
	index, err := prefix.NewRadix(with.Cache, prefix.Options{Order: prefix.LRU})
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(o.seed, 11))
	text := func(n int) []int32 {
		at := random.IntN(len(h.material.Text) - n)
		out := make([]int32, n)
		for i, x := range h.material.Text[at : at+n] {
			out[i] = int32(x)
		}
		return out
	}
	common := text(min(shared, len(h.material.Text)-1))
	bar := newBar(std, int64(2*users))
	defer bar.Close()
	prompts := make([][]int32, users)
	for i := range prompts {
		prompts[i] = slices.Clone(common)
	}
	for turn := range 2 {
		x := cachePrefix{Users: users, Shared: len(common), Own: own, Turn: turn + 1}
		var found, all int
		var times [2][]float64
		for i := range prompts {
			if err := ctx.Err(); err != nil {
				return err
			}
			prompts[i] = append(prompts[i], text(own)...)
			start := time.Now()
			plain, err := read(without, nil, prompts[i], nil)
			if err != nil {
				return err
			}
			plain = slices.Clone(plain)
			times[0] = append(times[0], time.Since(start).Seconds()*1e3)
			start = time.Now()
			logits, err := read(with, index, prompts[i], &found)
			if err != nil {
				return err
			}
			times[1] = append(times[1], time.Since(start).Seconds()*1e3)
			all += len(prompts[i])
			x.Apart = max(x.Apart, apart(plain, logits))
			bar.Add(1)
		}
		x.HitRate, x.Without, x.With = float64(found)/float64(all), median(times[0]), median(times[1])
		x.Speedup = x.Without / x.With
		r.Prefix = append(r.Prefix, x)
	}
	return o.cascade(ctx, std, b, r)
}

// apart is the largest difference, of the largest number.
func apart(x, y []float32) float64 {
	most, top := 0.0, 0.0
	for i := range x {
		most, top = max(most, math.Abs(float64(x[i]-y[i]))), max(top, math.Abs(float64(x[i])))
	}
	return most / top
}

// read runs a prompt, behind what an index finds of it, and lets its sequence go.
func read(m *model.Reader, index prefix.Index, tokens []int32, found *int) (_ []float32, err error) {
	prompt := prefix.Prompt{Namespace: "model", Tokens: tokens}
	id, at := kvcache.ID(0), 0
	if index == nil {
		id = m.Cache.NewSequence()
	} else {
		match := prompt
		match.Tokens = tokens[:len(tokens)-1] // the last one is always run
		lease, err := index.Match(&match)
		if err != nil {
			return nil, err
		}
		defer lease.Release()
		if id, err = lease.Start(); err != nil {
			return nil, err
		}
		at = lease.Tokens()
		*found += at
	}
	defer func() { err = errors.Join(err, m.Cache.Free(id)) }()
	var slots []int32
	if index == nil {
		slots, err = m.Cache.Extend([]kvcache.ID{id}, []int{len(tokens)}, nil)
	} else {
		slots, err = prefix.Extend(m.Cache, index, []kvcache.ID{id}, []int{len(tokens) - at}, nil)
	}
	if err != nil {
		return nil, err
	}
	logits, err := m.Read(id, slots, tokens[at:])
	if err != nil || index == nil {
		return logits, err
	}
	_, err = index.Insert(&prompt, id)
	return logits, err
}

// cacheSwap is how fast pages move, beside what memory and disk do by themselves.
type cacheSwap struct {
	What     string  `json:"what"`
	Beside   string  `json:"beside"` // what it is held against
	GBps     float64 `json:"gbps"`
	RoofGBps float64 `json:"beside_gbps"` // in the same run, in turn; medians
	PagesS   float64 `json:"pages_per_s"`
}

// swap moves the pages of a sequence to memory of the host, and to disk.
func (o *cacheFlags) swap(ctx context.Context, std streams, b kernel.Backend, r *cacheResults) (err error) {
	tokens, rounds := 4096, 9
	if o.quick {
		tokens, rounds = 512, 3
	}
	config := kvcache.Config{Layers: 16, PageSize: 16, KVHeads: 8, HeadDim: 128, ValueDim: 128, DType: tensor.F16}
	n := tokens / config.PageSize
	config.Pages = n
	c, err := kvcache.New(b, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	space, err := c.NewSwapSpace(n, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, space.Close()) }()
	id := c.NewSequence()
	if _, err := c.Extend([]kvcache.ID{id}, []int{tokens}, nil); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.out, "pages-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	disk, err := tier.OpenDisk(filepath.Join(dir, "tier"), tier.DiskOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	blob, err := space.Export(ctx, id, 0, page.Key{Namespace: "bench"}, nil)
	if err != nil {
		return err
	}
	bytes := c.Stats().UsedBytes
	from, to := make([]byte, bytes+int64(len(blob))), make([]byte, bytes+int64(len(blob)))
	files := min(n, 64)
	host, err := tier.NewHost(tier.Limits{Bytes: 2 * int64(files*len(blob))})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	raw := filepath.Join(dir, "raw")
	name := func(i int) string { return fmt.Sprint(raw, i) }
	each := func(f func(i int) error) func() error {
		return func() error {
			for i := range files {
				if err := f(i); err != nil {
					return err
				}
			}
			return nil
		}
	}
	// put stores pages that the store does not have, get reads the last of them.
	serial := 0
	key := func(i int) page.Key {
		return page.Key{Namespace: "bench", Hash: [32]byte{byte(i), byte(i >> 8), byte(i >> 16), byte(i >> 24)}}
	}
	export := func(store func(k page.Key, one []byte) error) func() error {
		return each(func(int) error {
			serial++
			k := key(serial)
			one, err := space.Export(ctx, id, serial%n, k, blob[:0])
			if err != nil {
				return err
			}
			return store(k, one)
		})
	}
	put := func(to tier.Store) func() error {
		return export(func(k page.Key, one []byte) error { return to.Put(ctx, k, one) })
	}
	get := func(from tier.Store) func() error {
		return each(func(i int) error {
			_, err := from.Get(ctx, key(serial-i), blob[:0])
			return err
		})
	}
	copied := each(func(i int) error { copy(to[i*int(bytes)/n:][:len(blob)], from[i*int(bytes)/n:]); return nil })
	all := int64(files * len(blob))
	moves := []struct {
		what, beside string
		bytes        int64
		pages        int
		move, roof   func() error
	}{
		{"swap out and in", "copies in memory", 2 * bytes, 2 * n, func() error {
			return errors.Join(space.SwapOut(ctx, id), space.Restore(ctx, id))
		}, func() error { copy(to[:bytes], from); copy(from, to[:bytes]); return nil }},
		{"export of pages, checksummed", "copies in memory", all, files, export(func(page.Key, []byte) error { return nil }), copied},
		{"host: export and put, checksummed", "copies in memory", all, files, put(host), copied},
		{"host: get, checked", "copies in memory", all, files, get(host), copied},
		{"disk: export and put, checksummed, synced", "new files of as many bytes, synced", all, files, put(disk), each(func(i int) error { return writeSynced(name(i), from[:len(blob)]) })},
		{"disk: get, checked, of cached files", "reads of such files", all, files, get(disk), each(func(i int) error { return readInto(name(i), to[:len(blob)]) })},
	}
	bar := newBar(std, int64(rounds*len(moves)))
	defer bar.Close()
	for _, m := range moves {
		took, err := inTurn(ctx, rounds, func() { bar.Add(1) }, m.move, m.roof)
		if err != nil {
			return err
		}
		r.Swap = append(r.Swap, cacheSwap{m.what, m.beside, float64(m.bytes) / took[0] / 1e9, float64(m.bytes) / took[1] / 1e9, float64(m.pages) / took[0]})
	}
	return nil
}

// writeSynced writes a new file as a careful program does, without a checksum.
func writeSynced(name string, data []byte) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close())
}

// readInto reads a file into memory that is there, as a tier does.
func readInto(name string, to []byte) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	_, err = io.ReadFull(f, to)
	return errors.Join(err, f.Close())
}
