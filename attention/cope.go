// Olga Golovneva et al., "Contextual Position Encoding: Learning to Count What's Important", 2024, https://arxiv.org/abs/2405.18719

package attention

import (
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// CoPE counts positions by content: a key lies as far back as there are keys
// since that the query asks for.
//
//	g[j] = σ(Scale·q·k[j])
//	p[j] = min(g[j] + … + g[i], P−1)
//	s[j] += q·e[p[j]], between whole positions in proportion
//
// with embeddings e[0] to e[P−1].
//
// Claim: weak, for models trained so; counting tasks that positions by token do
// not solve.
//
// Cost: the keys are read twice, since a gate depends on all that follow, and for
// each query and head a table of i+1 float32 is made on the host: 2·HeadDim FLOPs
// a pair and an exponential beside attention, and 2·P·HeadDim a query.
//
// Limits: made for decode. Prefill runs query by query, each with the bytes of a
// decode step. The host reads the scores, so tensors lie in host memory; one
// sequence, F32, F16 or BF16, causal, no rotation.
type CoPE struct {
	Embedding tensor.View // [P, HeadDim] F32, P at least 1
}

// Name returns "cope".
func (CoPE) Name() string { return "cope" }

// CoPEAttention is an Attention with positions of CoPE.
type CoPEAttention struct {
	module    CoPE
	backend   kernel.Backend
	attention *Attention

	queries, keys int
	pages         []int32 // of the sequence; contiguous: the row of each key
	contiguous    bool
	planned       bool
	key0          int

	indptr        [2]int32
	scores, table []float32
	embedded      []float32
	all           []int32 // 0, 1, 2, …
}

// New makes an Attention with these positions. Its Config has no Mask (it is
// Causal), Position, Rotary or Coding.
func (m CoPE) New(b kernel.Backend, c Config) (*CoPEAttention, error) {
	if c.Mask.Regions != nil || c.Mask.Kinds != 0 || c.Position != nil || c.Rotary != nil || !c.Coding.IsZero() || c.Score.RelBias {
		return nil, fmt.Errorf("attention: cope: Config has a Mask, Position, Rotary, Coding or relative bias, want none: the module makes them")
	}
	if e := &m.Embedding; e.DType != tensor.F32 || e.Rank != 2 || e.Shape[0] < 1 || e.Shape[1] != int64(c.HeadDim) {
		return nil, fmt.Errorf("attention: cope: Embedding is %v, want f32[P,%d] with P at least 1", e, c.HeadDim)
	}
	if err := m.Embedding.Check(); err != nil {
		return nil, fmt.Errorf("attention: cope: Embedding: %w", err)
	}
	c.Mask, c.Score.RelBias = Causal(), true
	a, err := New(b, c)
	if err != nil {
		return nil, err
	}
	if d := a.spec.KVDType; d.Float8() {
		a.Close()
		return nil, fmt.Errorf("attention: cope: keys of %v, want f32, f16 or bf16", d)
	}
	return &CoPEAttention{module: m, backend: b, attention: a}, nil
}

// Close frees what the kernel holds.
func (a *CoPEAttention) Close() error { return a.attention.Close() }

// Plan prepares a step of one sequence. Of a Step it takes QueryLens, KeyLens and
// KeyStarts, or KV.
func (a *CoPEAttention) Plan(step Step) error {
	a.planned = false
	if len(step.QueryLens) != 1 || step.QueryPos != nil || step.KeyPos != nil {
		return fmt.Errorf("attention: cope: a step of %d sequences, or with positions, want one sequence without", len(step.QueryLens))
	}
	if err := a.attention.Plan(step); err != nil {
		return err
	}
	b := a.attention.Batch()
	a.queries, a.keys = step.QueryLens[0], int(b.SeqLens[0])
	if a.queries > a.keys {
		return fmt.Errorf("attention: cope: %d queries and %d keys, want at most as many queries", a.queries, a.keys)
	}
	a.contiguous = step.KV == nil
	a.pages = a.pages[:0]
	if a.contiguous {
		a.key0 = int(b.KeyStart[0])
		for j := range a.keys {
			a.pages = append(a.pages, b.KeyStart[0]+int32(j))
		}
		a.planned = true
		return nil
	}
	if slices.Contains(b.Pages.Coded, true) {
		return fmt.Errorf("attention: cope: coded pages, want plain ones")
	}
	a.pages, a.planned = append(a.pages, b.Pages.Indices...), true
	return nil
}

// Run computes one layer of the step.
func (a *CoPEAttention) Run(args *kernel.Args) error {
	if !a.planned {
		return fmt.Errorf("attention: cope: %w", kernel.ErrNoPlan)
	}
	if args == nil {
		return &kernel.ValueError{Name: "Args", Got: "nil", Want: "arguments"}
	}
	spec := &a.attention.spec
	if q := &args.Query; q.Rank != 3 || q.Shape[0] != int64(a.queries) || q.Shape[1] != int64(spec.Heads) || q.Shape[2] != int64(spec.HeadDim) {
		return fmt.Errorf("attention: cope: Query is %v, want [%d,%d,%d]", q, a.queries, spec.Heads, spec.HeadDim)
	}
	if o := &args.Out; o.Rank != 3 || o.Shape[0] != int64(a.queries) || !args.LSE.IsZero() && (args.LSE.Rank != 2 || args.LSE.Shape[0] != int64(a.queries)) {
		return fmt.Errorf("attention: cope: Out is %v and LSE %v, want %d rows of each", o, &args.LSE, a.queries)
	}
	for t := range int64(a.queries) {
		one := *args
		one.Query, one.Out = args.Query.Slice(0, t, t+1), args.Out.Slice(0, t, t+1)
		if !args.LSE.IsZero() {
			one.LSE = args.LSE.Slice(0, t, t+1)
		}
		if err := a.token(&one, a.keys-a.queries+int(t)); err != nil {
			return err
		}
	}
	return nil
}

// token computes the query of index i.
func (a *CoPEAttention) token(args *kernel.Args, i int) error {
	heads, n := int64(a.attention.spec.Heads), int64(i+1)
	if err := a.score(args, n); err != nil {
		return err
	}
	a.table = grown(a.table, int(heads*n))
	width := int64(len(a.scores)) / heads
	positions := int64(len(a.embedded)) / heads
	for h := range heads {
		copeBias(a.table[h*n:][:n], a.scores[h*width:][:width], a.embedded[h*positions:][:positions])
	}
	args.RelBias = tensor.FromF32(a.table, heads, n)
	step := Step{QueryLens: []int{1}}
	if a.contiguous {
		step.KeyLens, step.KeyStarts = []int{i + 1}, []int{a.key0}
	} else {
		size := a.attention.spec.PageSize
		step.KV = ownPages{a.attention.spec.KeyStorage, size, a.pages[:(i+size)/size], int32(n)}
	}
	if err := a.attention.Plan(step); err != nil {
		return err
	}
	return a.attention.Run(args)
}

// score sets scores to Scale·q·k of the first n keys, [Heads, room], and embedded
// to q·e, [Heads, P]. A page of one key has its least and its largest value in
// that key, so that PageScores gives the product itself.
func (a *CoPEAttention) score(args *kernel.Args, n int64) error {
	spec := &a.attention.spec
	heads, size := int64(spec.Heads), max(int64(spec.PageSize), 1)
	pages := a.pages[:(n+size-1)/size]
	room := int64(len(pages)) * size
	a.scores = grown(a.scores, int(heads*room))
	if args.Key.Rank != 3 && a.contiguous || args.Key.Rank != 4 && !a.contiguous {
		return fmt.Errorf("attention: cope: Key is %v, want [rows, KVHeads, HeadDim], or with pages [pages, PageSize, KVHeads, HeadDim]", &args.Key)
	}
	if !a.contiguous && args.Key.Shape[1] != size {
		return fmt.Errorf("attention: cope: Key is %v, want pages of %d keys", &args.Key, size)
	}
	for slot := range size {
		key := args.Key
		if !a.contiguous { // the keys of a slot, page by page
			key = key.Slice(1, slot, slot+1)
			key.Rank = 3
			copy(key.Shape[1:3], key.Shape[2:4])
			copy(key.Stride[1:3], key.Stride[2:4])
		}
		out := tensor.FromF32(a.scores, 1, heads, room)
		out.Offset, out.Shape[2], out.Stride[2] = slot, int64(len(pages)), size
		if err := a.products(args.Query, key, pages, float32(spec.Scale), out); err != nil {
			return err
		}
	}
	e := a.module.Embedding
	positions := e.Shape[0]
	for int64(len(a.all)) < positions {
		a.all = append(a.all, int32(len(a.all)))
	}
	e.Rank = 3 // every KV head has the same
	e.Shape[1], e.Shape[2], e.Stride[1], e.Stride[2] = int64(spec.KVHeads), e.Shape[1], 0, e.Stride[1]
	a.embedded = grown(a.embedded, int(heads*positions))
	return a.products(args.Query, e, a.all[:positions], 1, tensor.FromF32(a.embedded, 1, heads, positions))
}

func (a *CoPEAttention) products(query, key tensor.View, rows []int32, scale float32, out tensor.View) error {
	a.indptr[1] = int32(len(rows))
	err := a.backend.PageScores(&kernel.PageScoresArgs{
		Query: query, Min: key, Max: key, QueryStart: []int32{0, 1},
		Pages: kernel.BlockTable{Indptr: a.indptr[:], Indices: rows}, Scale: scale, Policy: a.attention.spec.Policy, Out: out,
	})
	if err != nil {
		return fmt.Errorf("attention: cope: %w", err)
	}
	return nil
}

// copeBias writes the bias of distances 0 to len(table)−1 from the scores of keys
// 0 to len(table)−1 and the products of the query with the embeddings.
func copeBias(table, scores, embedded []float32) {
	position, last := 0.0, float64(len(embedded)-1)
	for d := range table {
		x := float64(scores[len(table)-1-d])
		position = min(position+1/(1+xmath.Exp(min(-x, 700))), last)
		low := math.Floor(position)
		w, k := position-low, int(low)
		table[d] = float32(float64((1-w)*float64(embedded[k])) + float64(w*float64(embedded[min(k+1, len(embedded)-1)])))
	}
}

// grown is x with n elements of any content.
func grown(x []float32, n int) []float32 { return slices.Grow(x[:0], n)[:n] }

// ownPages is a sequence of n keys in the first of some pages.
type ownPages struct {
	storage kernel.KeyStorage
	size    int
	pages   []int32
	n       int32
}

func (p ownPages) KeyStorage() kernel.KeyStorage { return p.storage }
func (p ownPages) PageSize() int                 { return p.size }
func (p ownPages) KeyPositions([]int32) []int32  { return nil }
func (p ownPages) LowerKV(dst *kernel.Batch) error {
	dst.SeqLens = append(dst.SeqLens[:0], p.n)
	dst.Pages.Indptr = append(dst.Pages.Indptr[:0], 0, int32(len(p.pages)))
	dst.Pages.Indices = append(dst.Pages.Indices[:0], p.pages...)
	return nil
}
