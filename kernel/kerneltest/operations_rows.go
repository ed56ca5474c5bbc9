package kerneltest

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// RowScores and CodeScores.

func (t *builder) rowOperations() {
	rows := func(name string, c rowsCase) {
		t.operation("rowscores", name, func(t *trial) { t.rowScores(c) })
	}
	usual := rowsCase{heads: 4, kvHeads: 2, dim: 16, size: 4, queries: []int{3, 0, 1, 5}, lens: []int{27, 4, 0, 118},
		query: tensor.F32, key: tensor.F32, scale: 0.25, seed: 1}
	with := func(edit func(c *rowsCase)) rowsCase { c := usual; edit(&c); return c }
	for _, some := range []int{0, 5} {
		for i, l := range layouts {
			rows(fmt.Sprintf("layout=%d/channels=%d", i, some), with(func(c *rowsCase) { c.layout, c.channels = l, some }))
		}
		for _, q := range allTypes() {
			for _, k := range allTypes() {
				rows(fmt.Sprintf("types/%v/%v/channels=%d", q, k, some), with(func(c *rowsCase) { c.query, c.key, c.channels = q, k, some }))
				rows(fmt.Sprintf("types/%v/%v/channels=%d/slots-together", q, k, some), with(func(c *rowsCase) {
					c.query, c.key, c.channels, c.slots, c.size = q, k, some, true, 40
				}))
			}
		}
		for _, n := range []int{1, 63, 64, 65, 130, 1023, 1024, 1025, 2100} {
			rows(fmt.Sprintf("decode/keys=%d/channels=%d", n, some), with(func(c *rowsCase) {
				c.queries, c.lens, c.channels, c.size = []int{1, 1}, []int{n, n - 1}, some, 64
			}))
		}
		for _, n := range []int{15, 16, 17, 33, 70} {
			rows(fmt.Sprintf("queries=%d/channels=%d", n, some), with(func(c *rowsCase) { c.queries, c.lens, c.channels = []int{n}, []int{90}, some }))
		}
		for _, h := range [][2]int{{1, 1}, {3, 3}, {8, 1}, {40, 1}, {14, 2}} {
			rows(fmt.Sprintf("heads=%d/kvheads=%d/channels=%d", h[0], h[1], some), with(func(c *rowsCase) { c.heads, c.kvHeads, c.channels = h[0], h[1], some }))
		}
		rows(fmt.Sprintf("extreme/channels=%d", some), with(func(c *rowsCase) { c.extreme, c.channels = true, some }))
		rows(fmt.Sprintf("spare-columns/channels=%d", some), with(func(c *rowsCase) { c.spare, c.channels = 1100, some }))
	}
	for _, d := range []int{1, 63, 64, 65, 128, 300} {
		rows(fmt.Sprintf("dim=%d", d), with(func(c *rowsCase) { c.dim = d }))
		rows(fmt.Sprintf("dim=%d/channels=%d", d, d), with(func(c *rowsCase) { c.dim, c.channels, c.slots = d, d, true }))
	}
	rows("channels-more-than-dim", with(func(c *rowsCase) { c.channels = 70 }))
	rows("no-keys", with(func(c *rowsCase) { c.queries, c.lens, c.spare = []int{2, 1}, []int{0, 0}, 2 }))
	rows("no-sequences", with(func(c *rowsCase) { c.queries, c.lens, c.spare = nil, nil, 3 }))
	rows("one-key-a-page", with(func(c *rowsCase) { c.size = 1 }))

	codes := func(name string, c codesCase) {
		t.operation("codescores", name, func(t *trial) { t.codeScores(c) }, kernel.Exact)
	}
	for i, l := range layouts {
		codes(fmt.Sprintf("layout=%d", i), codesCase{4, 2, 3, 16, 4, []int{3, 0, 1, 5}, []int{27, 4, 0, 118}, 0, l})
	}
	for _, n := range []int{2, 64, 256} {
		for _, parts := range []int{1, 2, 16} {
			codes(fmt.Sprintf("codes=%d/parts=%d", n, parts), codesCase{4, 2, parts, n, 64, []int{1, 2}, []int{1030, 70}, 5, Layout{}})
		}
	}
	codes("many-queries", codesCase{6, 2, 2, 8, 5, []int{40}, []int{90}, 0, Layout{}})
	codes("one-key-a-page", codesCase{2, 1, 2, 8, 1, []int{1}, []int{70}, 0, Layout{}})
	codes("no-keys", codesCase{2, 1, 2, 8, 1, []int{1, 1}, []int{0, 0}, 3, Layout{}})
	codes("no-sequences", codesCase{2, 1, 2, 8, 1, nil, nil, 3, Layout{}})
}

// rowsCase is a RowScores of sequences of keys in pages.
type rowsCase struct {
	heads, kvHeads, dim, size int
	queries, lens             []int
	query, key                tensor.DType
	channels                  int // 0: all, by nil
	scale                     float32
	spare                     int  // columns of Out beyond the longest sequence
	slots                     bool // side by side
	extreme                   bool
	layout                    Layout
	seed                      uint64
}

// keyTable makes the tables of paged sequences, and how many pages and columns
// they need. Pages are not in order, and two are of nobody.
func keyTable(r *random, queries, lens []int, size int) (k kernel.KeyTable, pages, columns int) {
	k.QueryStart, k.Pages.Indptr, pages = []int32{0}, []int32{0}, 2
	for _, n := range lens {
		pages, columns = pages+(n+size-1)/size, max(columns, n)
	}
	free := r.permutation(pages)
	for s, n := range lens {
		k.QueryStart, k.SeqLens = append(k.QueryStart, k.QueryStart[s]+int32(queries[s])), append(k.SeqLens, int32(n))
		for range (n + size - 1) / size {
			k.Pages.Indices, free = append(k.Pages.Indices, int32(free[0])), free[1:]
		}
		k.Pages.Indptr = append(k.Pages.Indptr, int32(len(k.Pages.Indices)))
	}
	return k, pages, columns
}

// scored puts Out, calls, and compares what every query head has of every key
// with want, in float64 with the error allowed, and in the bits of the rule.
func (t *trial) scored(m *memory, k *kernel.KeyTable, l Layout, tokens, heads, columns int, call func(out tensor.View) error,
	want func(s, token, h, j int) (rule float32, real, slack float64)) error {
	out, err := m.put("Out", tensor.F32, l, true, true, int64(tokens), int64(heads), int64(columns))
	if err != nil {
		return err
	}
	var v tensor.View
	if err := m.hands([]*block{out}, &v); err != nil {
		return err
	}
	if err := call(v); err != nil {
		return err
	}
	if err := m.take(); err != nil {
		return err
	}
	got := out.words()
	t.result.Hash = hash(&got)
	rules := words{tensor.F32, make([]uint32, len(got.bits))}
	at := 0
	for s, n := range k.SeqLens {
		for token := k.QueryStart[s]; token < k.QueryStart[s+1]; token++ {
			for h := range heads {
				for j := range columns {
					rules.bits[at] = math.Float32bits(float32(math.Inf(-1)))
					if j < int(n) {
						rule, real, slack := want(s, int(token), h, j)
						rules.bits[at] = math.Float32bits(rule)
						if e := math.Abs(got.value(at) - real); finite(real) && !(e <= slack) {
							t.wrong("Out of key %d of sequence %d, token %d, head %d is %v, want %v", j, s, token, h, got.value(at), real)
						}
					} else if !math.IsInf(got.value(at), -1) {
						t.wrong("Out: element %d is %v, want -Inf: sequence %d has %d keys", at, got.value(at), s, n)
					}
					at++
				}
			}
		}
	}
	if t.policy == kernel.Exact {
		t.differ(differ("Out", &got, &rules))
	}
	return nil
}

// rowScores: rule 19, which is close to the formula in real numbers. Slots that
// hold no key are poison.
func (t *trial) rowScores(c rowsCase) {
	t.with(func(m *memory) error {
		r := newRandom(c.seed, 11)
		table, pages, columns := keyTable(r, c.queries, c.lens, c.size)
		a := kernel.RowScoresArgs{KeyTable: table, Scale: c.scale, Policy: t.policy}
		tokens := sum(c.queries)
		draw := func(d tensor.DType, n int) []float32 {
			out := make([]float32, n)
			for i := range out {
				out[i] = float32(round(d, r.normal()))
			}
			return out
		}
		queries, keys := draw(c.query, tokens*c.heads*c.dim), draw(c.key, sum(c.lens)*c.kvHeads*c.dim)
		if c.extreme {
			queries[0], queries[c.heads*c.dim], queries[1] = float32(math.NaN()), float32(math.Inf(1)), 0
			keys[1], keys[c.kvHeads*c.dim*7] = float32(math.Inf(-1)), float32(math.NaN())
		}
		query, err := m.put("Query", c.query, c.layout, false, true, int64(tokens), int64(c.heads), int64(c.dim))
		if err != nil {
			return err
		}
		query.fill(queries)
		key, err := c.putKeys(m, &table, keys, int64(pages))
		if err != nil {
			return err
		}
		if c.channels > 0 {
			a.Channels = make([]int32, tokens*c.kvHeads*c.channels)
			for i := range a.Channels {
				a.Channels[i] = int32(r.below(c.dim))
			}
		}
		if err := m.hands([]*block{query, key}, &a.Query, &a.Key); err != nil {
			return err
		}
		return t.scored(m, &table, c.layout, tokens, c.heads, columns+c.spare,
			func(out tensor.View) error { a.Out = out; return t.backend.RowScores(&a) },
			func(s, token, h, j int) (float32, float64, float64) {
				g := h / (c.heads / c.kvHeads)
				q, k := queries[(token*c.heads+h)*c.dim:][:c.dim], keys[((sum(c.lens[:s])+j)*c.kvHeads+g)*c.dim:][:c.dim]
				rule, real, size, n := float32(0), 0.0, 0.0, c.dim
				if c.channels > 0 {
					n = c.channels
				}
				for i := range n {
					d := i
					if c.channels > 0 {
						d = int(a.Channels[(token*c.kvHeads+g)*c.channels+i])
					}
					rule = kernel.FMA(k[d], q[d], rule)
					real += float64(q[d]) * float64(k[d])
					size += math.Abs(float64(q[d]) * float64(k[d]))
				}
				return float32(rule * c.scale), real * float64(c.scale), float64(c.scale) * size * float64(n+1) * 0x1p-24
			})
	})
}

// putKeys puts the keys of all sequences into pages.
func (c *rowsCase) putKeys(m *memory, table *kernel.KeyTable, keys []float32, pages int64) (*block, error) {
	shape := []int64{pages, int64(c.size), int64(c.kvHeads), int64(c.dim)}
	if c.slots {
		shape[1], shape[3] = shape[3], shape[1]
		shape[1], shape[2] = shape[2], shape[1] // [pages, heads, dim, slots]
	}
	key, err := m.put("Key", c.key, c.layout, false, true, shape...)
	if err != nil {
		return nil, err
	}
	if c.slots {
		key.view = key.view.Swap(1, 3).Swap(2, 3)
	}
	at := 0
	for s, n := range c.lens {
		for j := range n {
			page := table.Pages.Indices[int(table.Pages.Indptr[s])+j/c.size]
			for g := range c.kvHeads {
				for d := range c.dim {
					key.row(keys[at:at+1], int64(page), int64(j%c.size), int64(g), int64(d))
					at++
				}
			}
		}
	}
	return key, nil
}

// codesCase is a CodeScores.
type codesCase struct {
	heads, kvHeads, parts, n, size int
	queries, lens                  []int
	spare                          int
	layout                         Layout
}

// codeScores: rule 20. Codes of n and more are drawn too.
func (t *trial) codeScores(c codesCase) {
	t.with(func(m *memory) error {
		r := newRandom(3, 12)
		keys, pages, columns := keyTable(r, c.queries, c.lens, c.size)
		tokens := sum(c.queries)
		table, x, err := m.filled("Table", tensor.F32, c.layout, false, 4, int64(tokens), int64(c.heads), int64(c.parts*c.n))
		if err != nil {
			return err
		}
		codes, err := m.put("Codes", tensor.U8, c.layout, false, true, int64(pages), int64(c.size), int64(c.kvHeads), int64(c.parts))
		if err != nil {
			return err
		}
		drawn := make([]float32, codes.view.Len())
		codes.each(func(at int64) { codes.setBits(tensor.U8, at, uint32(r.below(256))) })
		for i, b := range codes.words().bits {
			drawn[i] = float32(b)
		}
		a := kernel.CodeScoresArgs{KeyTable: keys}
		if err := m.hands([]*block{table, codes}, &a.Table, &a.Codes); err != nil {
			return err
		}
		return t.scored(m, &keys, c.layout, tokens, c.heads, columns+c.spare,
			func(out tensor.View) error { a.Out = out; return t.backend.CodeScores(&a) },
			func(s, token, h, j int) (rule float32, real, slack float64) {
				page, g := int(keys.Pages.Indices[int(keys.Pages.Indptr[s])+j/c.size]), h/(c.heads/c.kvHeads)
				for p := range c.parts {
					code := int(drawn[((page*c.size+j%c.size)*c.kvHeads+g)*c.parts+p]) % c.n
					v := x[(token*c.heads+h)*c.parts*c.n+p*c.n+code]
					rule += v
					real += float64(v)
					slack += math.Abs(float64(v)) * float64(c.parts) * 0x1p-24
				}
				return rule, real, slack
			})
	})
}

// keyTableFaults spoil what RowScores and CodeScores share.
func keyTableFaults(of func(*operands) *kernel.KeyTable, out func(*operands) *tensor.View) []operandFault {
	return []operandFault{
		{"page-too-large", func(o *operands) { of(o).Pages.Indices[1] = 4 }},
		{"page-negative", func(o *operands) { of(o).Pages.Indices[1] = -1 }},
		{"coded", func(o *operands) { of(o).Pages.Coded = []bool{false, true, false} }},
		{"indptr-short", func(o *operands) { of(o).Pages.Indptr = of(o).Pages.Indptr[:2] }},
		{"indptr-negative", func(o *operands) { of(o).Pages.Indptr[0] = -1 }},
		{"indptr-descends", func(o *operands) { of(o).Pages.Indptr[1] = 4 }},
		{"more-keys-than-pages", func(o *operands) { of(o).SeqLens[0] = 5 }},
		{"more-pages-than-keys", func(o *operands) { of(o).SeqLens[0] = 2 }},
		{"keys-negative", func(o *operands) { of(o).SeqLens[0] = -1 }},
		{"querystart-short", func(o *operands) { of(o).QueryStart = of(o).QueryStart[:2] }},
		{"querystart-none", func(o *operands) { *of(o) = kernel.KeyTable{} }},
		{"querystart-not-from-0", func(o *operands) { of(o).QueryStart[0] = 1 }},
		{"querystart-descends", func(o *operands) { of(o).QueryStart[1] = 4 }},
		{"more-keys-than-columns", func(o *operands) { out(o).Shape[2] = 3 }},
	}
}

var (
	rowFaults = append([]operandFault{
		{"heads-do-not-divide", func(o *operands) {
			o.rowScores.Query, o.rowScores.Out = tensor.New(tensor.F32, 3, 5, 4), tensor.New(tensor.F32, 3, 5, 4)
		}},
		{"scale-0", func(o *operands) { o.rowScores.Scale = 0 }},
		{"scale-nan", func(o *operands) { o.rowScores.Scale = float32(math.NaN()) }},
		{"policy", func(o *operands) { o.rowScores.Policy = 7 }},
		{"f8", func(o *operands) { o.rowScores.Key = tensor.New(tensor.F8E4M3, 4, 2, 2, 4) }},
		{"channels-uneven", func(o *operands) { o.rowScores.Channels = o.rowScores.Channels[1:] }},
		{"channel-too-large", func(o *operands) { o.rowScores.Channels[3] = 4 }},
		{"channel-negative", func(o *operands) { o.rowScores.Channels[3] = -1 }},
		{"zero", func(o *operands) { o.rowScores = kernel.RowScoresArgs{} }},
	}, keyTableFaults(func(o *operands) *kernel.KeyTable { return &o.rowScores.KeyTable }, func(o *operands) *tensor.View { return &o.rowScores.Out })...)
	codeFaults = append([]operandFault{
		{"scores-of-no-power-of-two", func(o *operands) { o.codeScores.Table = tensor.New(tensor.F32, 3, 4, 6) }},
		{"scores-of-one-code", func(o *operands) { o.codeScores.Table = tensor.New(tensor.F32, 3, 4, 2) }},
		{"too-many-codes", func(o *operands) { o.codeScores.Table = tensor.New(tensor.F32, 3, 4, 1024) }},
		{"no-parts", func(o *operands) { o.codeScores.Codes = tensor.New(tensor.U8, 4, 2, 2, 0) }},
		{"f16", func(o *operands) { o.codeScores.Table = tensor.New(tensor.F16, 3, 4, 8) }},
		{"zero", func(o *operands) { o.codeScores = kernel.CodeScoresArgs{} }},
	}, keyTableFaults(func(o *operands) *kernel.KeyTable { return &o.codeScores.KeyTable }, func(o *operands) *tensor.View { return &o.codeScores.Out })...)
)
