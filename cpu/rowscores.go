package cpu

import (
	"math"

	"github.com/longctx/longctx/cpu/internal/vec"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// scoreTiles is the number of tiles of keys in an item: its memory is cleared
// once for all of them.
const scoreTiles = 16

// keyScoring has the scores of a run of keys of a sequence and KV head an item.
type keyScoring struct {
	kernel.KeyTable
	out   reader
	size  int64
	group int
	heads int64 // KV heads
	runs  int64 // of keys, for each sequence and head
}

func newKeyScoring(t *kernel.KeyTable, keys, queries, out *tensor.View) keyScoring {
	s := keyScoring{KeyTable: *t, out: read(out), size: keys.Shape[1], heads: keys.Shape[2]}
	s.group = int(queries.Shape[1] / s.heads)
	s.runs = (out.Shape[2] + scoreTiles*tile - 1) / (scoreTiles * tile)
	return s
}

func (t *keyScoring) items() int64 { return int64(len(t.SeqLens)) * t.heads * t.runs }

// run is the keys lo … hi−1 of item i, as far as its sequence has them, and its
// query rows: tokens from t0, of each the heads of the group.
func (t *keyScoring) run(i int64) (s, kvHead int, lo, hi, t0 int64, rows int) {
	lo, kvHead, s = i%t.runs*scoreTiles*tile, int(i/t.runs%t.heads), int(i/t.runs/t.heads)
	hi = max(min(lo+scoreTiles*tile, int64(t.SeqLens[s])), lo)
	t0 = int64(t.QueryStart[s])
	return s, kvHead, lo, hi, t0, int(int64(t.QueryStart[s+1])-t0) * t.group
}

// at is the page and slot of key j of sequence s, and how many keys of it up to
// hi are in that page.
func (t *keyScoring) at(s int, j, hi int64) (page, slot int64, n int) {
	slot = j % t.size
	return int64(t.Pages.Indices[int64(t.Pages.Indptr[s])+j/t.size]), slot, int(min(hi-j, t.size-slot))
}

// absent writes −Inf for the columns of an item from hi on.
func (t *keyScoring) absent(lo, hi, t0 int64, kvHead, rows int) {
	var none [tile]float32
	for k := range none {
		none[k] = float32(math.Inf(-1))
	}
	for at := hi; at < min(lo+scoreTiles*tile, int64(t.out.n)); at += tile {
		out := t.out.features(int(at), int(min(tile, lo+scoreTiles*tile-at, int64(t.out.n)-at)))
		for r := range rows {
			out.storeRow(none[:], t0+int64(r/t.group), kvHead*t.group+r%t.group)
		}
	}
}

// RowScores has the scores of single keys over some of their features.
func (b *Backend) RowScores(a *kernel.RowScoresArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Query, &a.Key, &a.Out); err != nil {
		return err
	}
	t := rowScoring{keyScoring: newKeyScoring(&a.KeyTable, &a.Key, &a.Query, &a.Out),
		query: read(&a.Query), key: read(&a.Key), channels: a.Channels, count: int(a.Query.Shape[2]), scale: a.Scale, policy: a.Policy}
	if lists := a.Query.Shape[0] * t.heads; a.Channels != nil && lists > 0 {
		t.count = int(int64(len(a.Channels)) / lists)
	}
	n := t.items()
	if b.pool.workers > 1 && n > 1 && a.Out.Len()*int64(t.count) >= opShare {
		shared := t
		b.pool.do(&job{}, &shared, n)
		return nil
	}
	for i := range n {
		t.item(0, i)
	}
	return nil
}

type rowScoring struct {
	keyScoring
	query, key reader
	channels   []int32
	count      int // channels of a token and KV head
	scale      float32
	policy     kernel.Policy
}

// rowTile is the memory of an item: the features of a tile of keys, feature c of
// key n at c·tile+n, those of queries, and sums.
type rowTile struct {
	columns [pageFeatures * tile]float32
	query   [pageRows * pageFeatures]float32
	sums    [pageRows * tile]float32
	all     [kernel.MaxHeadDim]float32
	r0, c0  int // the rows and channels that query holds
	have    bool
}

func (t *rowScoring) item(_ int, i int64) {
	s, kvHead, lo, hi, t0, rows := t.run(i)
	var m rowTile
	for j := lo; j < hi; j += tile {
		have := int(min(tile, hi-j))
		// Channels are those of a token: with them, rows of one token at a time.
		step := pageRows
		if t.channels != nil {
			step = min(step, t.group)
		}
		for r0 := 0; r0 < rows; {
			n := min(step, rows-r0)
			if t.channels != nil {
				n = min(n, t.group-r0%t.group)
			}
			clear(m.sums[:n*tile])
			for c0 := 0; c0 < t.count; c0 += pageFeatures {
				t.add(&m, s, kvHead, j, have, t0, r0, n, c0, min(pageFeatures, t.count-c0))
			}
			out := t.out.features(int(j), have)
			for r := range n {
				sums := m.sums[r*tile:][:have]
				vec.ScaleRow(sums, t.scale)
				out.storeRow(sums, t0+int64((r0+r)/t.group), kvHead*t.group+(r0+r)%t.group)
			}
			r0 += n
		}
	}
	t.absent(lo, hi, t0, kvHead, rows)
}

// add adds to the sums of n rows from r0 what count channels from c0 give.
func (t *rowScoring) add(m *rowTile, s, kvHead int, j int64, have int, t0 int64, r0, n, c0, count int) {
	var list []int32 // of the token of these rows
	if t.channels != nil {
		list = t.channels[((int(t0)+r0/t.group)*int(t.heads)+kvHead)*t.count+c0:][:count]
	}
	if !m.have || m.r0 != r0 || m.c0 != c0 {
		m.have, m.r0, m.c0 = true, r0, c0
		for r := range n {
			t.loadQuery(m, m.query[r*pageFeatures:][:count], list, c0, t0+int64((r0+r)/t.group), kvHead*t.group+(r0+r)%t.group)
		}
	}
	for k := 0; k < have; {
		at, run := t.place(s, kvHead, j+int64(k), j+int64(have))
		ahead := 0 // to where the key a tile later lies
		if next := j + int64(k) + tile; next < int64(t.SeqLens[s]) {
			later, _ := t.place(s, kvHead, next, next+1)
			ahead = int(later - at)
		}
		t.loadKeys(m.columns[k:], list, at, run, ahead, c0, count)
		k += run
	}
	vec.MulAdd(t.policy, vec.Matrix{X: m.sums[:], Row: tile}, vec.Matrix{X: m.query[:], Row: pageFeatures, Col: 1},
		vec.Matrix{X: m.columns[:], Row: tile}, n, count, tile, vec.Keep, nil)
}

// place is the element at which key j of sequence s begins, and how many keys of it up
// to hi are in its page.
func (t *rowScoring) place(s, kvHead int, j, hi int64) (at int64, n int) {
	page, slot, n := t.at(s, j, hi)
	return t.key.offset + page*t.key.row + slot*t.key.slot + int64(kvHead)*t.key.head, n
}

func (t *rowScoring) loadQuery(m *rowTile, dst []float32, list []int32, c0 int, token int64, head int) {
	if list == nil {
		q := t.query.features(c0, len(dst))
		q.loadRow(dst, token, head)
		return
	}
	all := features(m.all[:], t.query.n)
	t.query.loadRow(all, token, head)
	for c, d := range list {
		dst[c] = all[d]
	}
}

// loadKeys widens channels of n keys from element at to columns.
func (t *rowScoring) loadKeys(dst []float32, list []int32, at int64, n, ahead, c0, count int) {
	k := &t.key
	if list == nil && k.slot != 1 {
		r := k.features(c0, count)
		r.loadRun(dst, tile, true, at+int64(c0)*k.dim, k.slot, n, ahead)
		return
	}
	for c := range count {
		d := int64(c0 + c)
		if list != nil {
			d = int64(list[c])
		}
		from, to := at+d*k.dim, dst[c*tile:][:n]
		switch {
		case k.slot == 1 && k.f32 != nil:
			vec.RowsF32(to, n, k.f32[from:], n, 1, n, ahead)
		case k.slot == 1:
			vec.Rows16(to, n, k.bits[from:], k.dtype, n, 1, n, ahead)
		case k.f32 != nil:
			for i := range to {
				to[i] = k.f32[from+int64(i)*k.slot]
			}
		default:
			for i := range to {
				to[i] = k.at(from + int64(i)*k.slot)
			}
		}
	}
}

// CodeScores has the scores of keys that are codes.
func (b *Backend) CodeScores(a *kernel.CodeScoresArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Table, &a.Codes, &a.Out); err != nil {
		return err
	}
	t := codeScoring{keyScoring: newKeyScoring(&a.KeyTable, &a.Codes, &a.Table, &a.Out), table: read(&a.Table), codes: read(&a.Codes)}
	n := t.items()
	if b.pool.workers > 1 && n > 1 && a.Out.Len()*int64(t.codes.n) >= opShare {
		b.pool.do(&job{}, &codeScoring{t.keyScoring, t.table, t.codes}, n)
		return nil
	}
	for i := range n {
		t.item(0, i)
	}
	return nil
}

type codeScoring struct {
	keyScoring
	table, codes reader
}

func (t *codeScoring) item(_ int, i int64) {
	s, kvHead, lo, hi, t0, rows := t.run(i)
	var codes [tile]uint8
	var sums [pageRows * tile]float32
	var scores [256]float32
	parts := t.codes.n
	n := t.table.n / parts
	for j := lo; j < hi; j += tile {
		have := int(min(tile, hi-j))
		for r0 := 0; r0 < rows; r0 += pageRows {
			block := min(pageRows, rows-r0)
			clear(sums[:])
			for p := range parts {
				t.loadCodes(codes[:have], s, kvHead, j, p)
				table := t.table.features(p*n, n)
				for r := range block {
					table.loadRow(scores[:n], t0+int64((r0+r)/t.group), kvHead*t.group+(r0+r)%t.group)
					sum := sums[r*tile:][:have]
					for k := range sum {
						sum[k] += scores[codes[k]&uint8(n-1)]
					}
				}
			}
			out := t.out.features(int(j), have)
			for r := range block {
				out.storeRow(sums[r*tile:][:have], t0+int64((r0+r)/t.group), kvHead*t.group+(r0+r)%t.group)
			}
		}
	}
	t.absent(lo, hi, t0, kvHead, rows)
}

// loadCodes copies part p of keys from j on.
func (t *codeScoring) loadCodes(dst []uint8, s, kvHead int, j int64, p int) {
	c := &t.codes
	for k := 0; k < len(dst); {
		page, slot, n := t.at(s, j+int64(k), j+int64(len(dst)))
		at := c.offset + page*c.row + slot*c.slot + int64(kvHead)*c.head + int64(p)*c.dim
		for i := range n {
			dst[k+i] = c.b8[at+int64(i)*c.slot]
		}
		k += n
	}
}
