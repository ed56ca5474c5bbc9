// Zhuoming Chen et al., "MagicPIG: LSH Sampling for Efficient LLM Generation", 2024, https://arxiv.org/abs/2410.16179

package attention

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// MagicPIG samples keys by locality-sensitive hashing and weighs them by how
// likely they were to be drawn. A hash is the signs of Bits random projections;
// there are Tables of them, and a query takes the keys whose hash is its own in
// two tables or more. With θ the angle between the query and the key, from which
// the mean of the keys of the first Append is subtracted,
//
//	p = 1 − θ/π                                             that a projection has the same sign
//	u = 1 − (1 − p^Bits)^Tables − Tables·p^Bits·(1 − p^Bits)^(Tables−1)   that a key is taken
//	s ← s − ln u
//
// so that Σ exp(s) and Σ exp(s)·v over the keys taken have the mean, over seeds,
// of the sums over all keys; Out is their quotient. The first Sinks and the last
// Window keys are seen as they are.
//
// Claim: unbiased sums where the largest scores alone are not: heads that spread
// their weight over many keys. 10 bits and 150 tables are a published setting, with
// dense attention in the first layers.
//
// Cost: 2·Bits·Tables·HeadDim FLOPs to hash a row; a query reads Tables/2^Bits
// numbers for each key unlike it, and some hundredths of the keys. An index has a
// copy of the keys in float32 and 4·Tables bytes a key and KV head.
//
// Limits: for decode on the CPU. The variance is small only where p is large for
// the keys that weigh: it is the angle that counts, not the score. Queries and
// keys come turned.
type MagicPIG struct {
	Bits   int // of a hash, 1 to 12
	Tables int // 2 to 255
	Sinks  int // first keys seen without search, at least 0
	Window int // last keys seen without search, the query's own included, at least 1
	Seed   uint64
}

// Info describes the selector.
func (MagicPIG) Info() SelectorInfo {
	return SelectorInfo{"magicpig", "arXiv:2410.16179", "decode", "hash tables of the keys, in host memory"}
}

// Name returns "magicpig".
func (MagicPIG) Name() string { return "magicpig" }

func (m MagicPIG) static() static { return static{m.Sinks, m.Window} }

func (m MagicPIG) check() error {
	if m.Bits < 1 || m.Bits > 12 || m.Tables < 2 || m.Tables > 255 {
		return fmt.Errorf("attention: magicpig: Bits is %d and Tables %d, want 1 to 12 and 2 to 255", m.Bits, m.Tables)
	}
	if err := m.static().check(); err != nil {
		return fmt.Errorf("attention: magicpig: %w", err)
	}
	return nil
}

// New makes an Attention that takes the keys of an index. Its Config has no Mask,
// Position, Rotary or Score but SoftCap.
func (m MagicPIG) New(b kernel.Backend, c Config) (*SearchedAttention, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	a, err := newSearched(b, c, m.static())
	if err != nil {
		return nil, fmt.Errorf("attention: magicpig: %w", err)
	}
	return a, nil
}

// Taken is the probability u that a key at an angle of this cosine is taken.
func (m MagicPIG) Taken(cos float64) float64 {
	n, hit := float64(m.Tables), power(1-arccos(cos)/math.Pi, m.Bits)
	if n*hit < 1e-3 { // three terms, for the difference below would cancel
		tail := math.FMA(hit*hit, (n-2)*(n-3)/4, math.FMA(hit, -2*(n-2)/3, 1))
		return n * (n - 1) / 2 * hit * hit * tail
	}
	return math.FMA(-power(1-hit, m.Tables-1), math.FMA(n-1, hit, 1), 1)
}

// power is xⁿ by squaring.
func power(x float64, n int) float64 {
	out := 1.0
	for ; n > 0; n >>= 1 {
		if n&1 == 1 {
			out *= x
		}
		x *= x
	}
	return out
}

// arccos has the same bits everywhere (Abramowitz and Stegun, 4.4.46, to 2·10⁻⁸).
func arccos(x float64) float64 {
	y := min(math.Abs(x), 1)
	s := -0.0012624911
	for _, c := range [...]float64{0.0066700901, -0.0170881256, 0.0308918810, -0.0501743046, 0.0889789874, -0.2145988016, 1.5707963050} {
		s = math.FMA(s, y, c)
	}
	s *= math.Sqrt(1 - y)
	if x < 0 {
		return math.Pi - s
	}
	return s
}

// HashedKeys is the index of MagicPIG over the keys of one sequence and layer.
// It serves one goroutine at a time.
type HashedKeys struct {
	module  MagicPIG
	keys    keyRows // less the mean
	planes  tensor.View
	pages   []int32
	mean    []float32 // [KVHeads·dim]
	norms   []float32 // [keys·KVHeads]
	buckets [][]int32 // of KV head g, table l and hash x, at (g·Tables + l)<<Bits + x: keys ascending
	hits    [][]uint8 // of each KV head, for a search
}

// NewIndex makes an index without keys.
func (m MagicPIG) NewIndex(kvHeads, headDim int) (*HashedKeys, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	if err := checkKeyRows(kvHeads, headDim); err != nil {
		return nil, fmt.Errorf("attention: magicpig: %w", err)
	}
	const most = 1 << 24
	if n := int64(kvHeads*m.Tables) << m.Bits; n > most {
		return nil, fmt.Errorf("attention: magicpig: %d KV heads with %d tables of 2^%d lists, want at most %d lists in all", kvHeads, m.Tables, m.Bits, most)
	}
	x := &HashedKeys{module: m, keys: keyRows{kvHeads: kvHeads, dim: headDim}, buckets: make([][]int32, kvHeads*m.Tables<<m.Bits), hits: make([][]uint8, kvHeads)}
	n := int64(m.Bits * m.Tables)
	x.planes = tensor.New(tensor.F32, n, 1, int64(headDim))
	for i := range x.planes.F32s() {
		x.planes.F32s()[i] = gaussian(m.Seed, uint64(i))
	}
	for i := range n {
		x.pages = append(x.pages, int32(i))
	}
	return x, nil
}

// gaussian is the i-th normal number of a seed (Box and Muller).
func gaussian(seed, i uint64) float32 {
	a, b := mix(seed, 2*i), mix(seed, 2*i+1)
	radius := math.Sqrt(-2 * xmath.Log((float64(a>>11)+0.5)/(1<<53)))
	_, cos := xmath.SinCos(2*math.Pi, float64(b>>11)/(1<<53))
	return float32(radius * cos)
}

// mix is the i-th number of SplitMix64 from a seed that is mixed first.
func mix(seed, i uint64) uint64 {
	for _, add := range [...]uint64{0, i} {
		seed += (add + 1) * 0x9e3779b97f4a7c15
		seed = (seed ^ seed>>30) * 0xbf58476d1ce4e5b9
		seed = (seed ^ seed>>27) * 0x94d049bb133111eb
		seed ^= seed >> 31
	}
	return seed
}

// Keys is the number of keys in the index.
func (x *HashedKeys) Keys() int { return x.keys.n }

// Append hashes further keys [n, KVHeads, HeadDim], in order, by PageScores of a
// backend that reads host memory.
func (x *HashedKeys) Append(ops kernel.Ops, key tensor.View) error {
	first, err := x.keys.append(&key)
	if err != nil {
		return fmt.Errorf("attention: magicpig: %w", err)
	}
	added := x.keys.n - first
	if added == 0 {
		return nil
	}
	row := x.keys.kvHeads * x.keys.dim
	if x.mean == nil {
		x.mean = columnMeans(x.keys.x, row)
	}
	for i := first * row; i < len(x.keys.x); i++ {
		x.keys.x[i] -= x.mean[i%row]
	}
	hashes, err := x.hash(ops, x.keys.x[first*row:])
	if err != nil {
		if x.keys.truncate(first); first == 0 {
			x.mean = nil
		}
		return err
	}
	for r := range added * x.keys.kvHeads {
		x.norms = append(x.norms, norm(x.keys.x[first*row+r*x.keys.dim:][:x.keys.dim]))
		for l, h := range hashes[r*x.module.Tables:][:x.module.Tables] {
			at := (r%x.keys.kvHeads*x.module.Tables+l)<<x.module.Bits + int(h)
			x.buckets[at] = append(x.buckets[at], int32(first+r/x.keys.kvHeads))
		}
	}
	for g, h := range x.hits {
		x.hits[g] = append(h, make([]uint8, (x.keys.n+7)/8*8-len(h))...)
	}
	return nil
}

// hash returns the hashes of rows, Tables of each. The planes are both bounds of
// PageScores, whose score is then the projection.
func (x *HashedKeys) hash(ops kernel.Ops, rows []float32) ([]uint16, error) {
	const most = 1024 // rows at a time
	dim, planes, bits := x.keys.dim, len(x.pages), x.module.Bits
	n := len(rows) / dim
	out := make([]uint16, 0, n*x.module.Tables)
	scores := tensor.New(tensor.F32, int64(min(n, most)), 1, int64(planes))
	for r0 := 0; r0 < n; r0 += most {
		n := min(most, n-r0)
		if err := ops.PageScores(&kernel.PageScoresArgs{
			Query: tensor.FromF32(rows[r0*dim:][:n*dim], int64(n), 1, int64(dim)), Min: x.planes, Max: x.planes, QueryStart: []int32{0, int32(n)},
			Pages: kernel.BlockTable{Indptr: []int32{0, int32(planes)}, Indices: x.pages}, Scale: 1, Out: scores.Slice(0, 0, int64(n)),
		}); err != nil {
			return nil, fmt.Errorf("attention: magicpig: %w", err)
		}
		for at := 0; at < n*planes; at += bits {
			h := uint16(0)
			for _, s := range scores.F32s()[at:][:bits] {
				h <<= 1
				if s >= 0 {
					h |= 1
				}
			}
			out = append(out, h)
		}
	}
	return out, nil
}

// Search adds to found the keys taken for queries [tokens, Heads, HeadDim], the
// last tokens of the sequence when it had so many keys, with their weights. The
// index has to have all but the last Window keys of them.
func (x *HashedKeys) Search(ops kernel.Ops, query tensor.View, keys int, found *Found) error {
	if found == nil {
		return errors.New("attention: magicpig: Search into no Found, want one")
	}
	rows, err := x.keys.queries(&query, keys, x.module.static())
	if err != nil {
		return fmt.Errorf("attention: magicpig: %w", err)
	}
	hashes, err := x.hash(ops, rows)
	if err != nil {
		return err
	}
	heads, tokens, tables := int(query.Shape[1]), int(query.Shape[0]), x.module.Tables
	found.addRows(tokens*heads, heads, x.keys.kvHeads, func(g, r int, found *Found) {
		end := max(keys-tokens+r/heads+1-x.module.Window, 0)
		x.take(rows[r*x.keys.dim:][:x.keys.dim], hashes[r*tables:][:tables], g, end, found)
	})
	return nil
}

// take adds the keys of KV head g before end that hit twice.
func (x *HashedKeys) take(q []float32, hashes []uint16, g, end int, found *Found) {
	hits := x.hits[g][:(min(end, x.keys.n)+7)/8*8]
	clear(hits)
	for l, h := range hashes {
		for _, j := range x.buckets[(g*x.module.Tables+l)<<x.module.Bits+int(h)] {
			if int(j) >= end {
				break
			}
			hits[j]++
		}
	}
	length := norm(q)
	for at := 0; at < len(hits); at += 8 {
		if binary.LittleEndian.Uint64(hits[at:])&0xfefefefefefefefe == 0 {
			continue
		}
		for j := max(at, x.module.Sinks); j < min(at+8, end); j++ {
			if hits[j] < 2 {
				continue
			}
			cos := 0.0
			switch k := x.norms[j*x.keys.kvHeads+g]; {
			case length == 0 && k == 0:
				cos = 1
			case length != 0 && k != 0:
				cos = float64(dot(q, x.keys.row(j, g))) / (float64(length) * float64(k))
			}
			found.Indices = append(found.Indices, int32(j))
			found.LogWeight = append(found.LogWeight, float32(-xmath.Log(max(x.module.Taken(cos), 1e-30))))
		}
	}
}
