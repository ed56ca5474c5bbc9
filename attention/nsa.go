// Jingyang Yuan et al., "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention", 2025, https://arxiv.org/abs/2502.11089

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// NSA is the gated sum of three attentions:
//
//	Out_h = g1·compressed + g2·selected + g3·window
//
// compressed is over the means of keys and of values of the blocks that end before
// or at the query; selected over the Blocks blocks of the largest
//
//	score(p) = Σ_h softmax over compressed keys of Scale·q_h·K̄ , at p
//
// summed over the heads of a KV head, which share the choice; window over the last
// Window keys. Sinks first and Recent last blocks, the query's own included, are
// selected whatever their score and count in Blocks: 1 and 2 in flash-linear-
// attention, 0 and 1 in native-sparse-attention. A block is a page. Gates belong to
// the model, sigmoids of each token and head.
//
// Claim: for models trained so, quality of dense attention or better, decode 11
// times faster at 64k in the paper.
//
// Cost: attention over a key a block, over Blocks blocks and over Window keys; TopK
// of a score a block.
//
// Limits: for decode (a sequence of compressed keys a token), with keys as they are
// to be multiplied: no rotation. The paper compresses by a learned map of
// overlapping blocks; these are means, as in both codes named. Gates and scores are
// in host memory.
type NSA struct {
	Blocks int // selected, at least 1; 16
	Sinks  int // of these, first blocks, at least 0; 1
	Recent int // of these, last blocks, the query's own included, at least 1; 2
	Window int // keys, at least 1; 512
}

// Info describes the selector.
func (NSA) Info() SelectorInfo {
	return SelectorInfo{"nsa", "arXiv:2502.11089", "decode", "a model trained so; means of keys and values of each full page; gates"}
}

// Compress writes the means of the keys and values of full pages to meanKey and
// meanValue, [pages, KVHeads, dim] F32, in host memory.
func (NSA) Compress(key, value, meanKey, meanValue tensor.View, pages []int32) error {
	for _, x := range [...]struct{ rows, mean *tensor.View }{{&key, &meanKey}, {&value, &meanValue}} {
		if x.rows.Rank != 4 || x.mean.Rank != 3 || x.mean.DType != tensor.F32 || x.mean.Shape[0] != x.rows.Shape[0] || x.mean.Shape[1] != x.rows.Shape[2] || x.mean.Shape[2] != x.rows.Shape[3] {
			return fmt.Errorf("attention: nsa: means %v of %v, want [pages, KVHeads, dim] F32", x.mean, x.rows)
		}
		if err := onHost("nsa", x.mean); err != nil {
			return err
		}
		full := make([]int32, len(pages))
		for i := range full {
			full[i] = int32(x.rows.Shape[1])
		}
		if err := eachPage("nsa", x.rows, pages, full, func(i int, block tensor.View) error {
			for g := range block.Shape[1] {
				for d := range block.Shape[2] {
					sum := 0.0
					for j := range block.Shape[0] {
						sum += float64(block.At(j, g, d))
					}
					x.mean.Set(float32(sum/float64(block.Shape[0])), int64(pages[i]), g, d)
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// NSAAttention computes NSA. It serves one goroutine at a time.
type NSAAttention struct {
	m                            NSA
	compressed, selected, window *Attention
	// Selected are the blocks of the last Run.
	Selected kernel.BlockSparse
}

// New makes the three attentions for a Config whose Mask is zero, with pages of a
// block and no Rotary and Score.
func (m NSA) New(b kernel.Backend, c Config) (*NSAAttention, error) {
	if m.Blocks < 1 || m.Sinks < 0 || m.Recent < 1 || m.Sinks > m.Blocks-m.Recent || m.Window < 1 {
		return nil, fmt.Errorf("attention: nsa: %+v, want Window, Blocks and Recent at least 1, Sinks at least 0, and Sinks and Recent together at most Blocks", m)
	}
	if len(c.Mask.Regions) > 0 || c.Mask.Kinds != 0 || c.Rotary != nil || c.Position != nil || c.Score != (Score{}) || c.Backward || c.ColumnStats || !c.Coding.IsZero() || c.PageSize < 1 {
		return nil, fmt.Errorf("attention: nsa: want a PageSize of at least 1, and no Mask, Rotary, Position, Score, Backward, ColumnStats and Coding")
	}
	out, blocks := &NSAAttention{m: m}, Causal()
	blocks.Kinds |= kernel.MaskBlocks
	for _, x := range []struct {
		to   **Attention
		mask Mask
	}{{&out.compressed, Bidirectional()}, {&out.selected, blocks}, {&out.window, Window(m.Window)}} {
		one := c
		one.Mask = x.mask
		if x.to == &out.compressed {
			one.PageSize, one.ColumnStats, one.KVDType = 1, true, tensor.F32
		}
		var err error
		if *x.to, err = New(b, one); err != nil {
			out.Close()
			return nil, err
		}
	}
	return out, nil
}

// Close frees what the kernels hold.
func (a *NSAAttention) Close() (err error) {
	for _, x := range []*Attention{a.compressed, a.selected, a.window} {
		if x != nil {
			if e := x.Close(); e != nil {
				err = e
			}
		}
	}
	return err
}

// pageTables are a KVSource of given tables.
type pageTables struct {
	size  int
	lens  []int32
	pages kernel.BlockTable
}

func (p *pageTables) KeyStorage() kernel.KeyStorage { return kernel.PreRoPE }
func (p *pageTables) PageSize() int                 { return p.size }
func (p *pageTables) KeyPositions([]int32) []int32  { return nil }
func (p *pageTables) LowerKV(dst *kernel.Batch) error {
	dst.SeqLens = append(dst.SeqLens[:0], p.lens...)
	dst.Pages.Indptr, dst.Pages.Indices = append(dst.Pages.Indptr[:0], p.pages.Indptr...), append(dst.Pages.Indices[:0], p.pages.Indices...)
	return nil
}

// Run computes a step: args as for dense attention, F32 in host memory, without LSE;
// the means of Compress; and gates [tokens, Heads] F32 of the three attentions.
func (a *NSAAttention) Run(ops kernel.Ops, in *Selection, args *kernel.Args, meanKey, meanValue tensor.View, gates [3]tensor.View) error {
	if err := in.check(); err != nil {
		return err
	}
	if args == nil {
		return &kernel.ValueError{Name: "Args", Got: "nil", Want: "arguments"}
	}
	tokens, heads := in.Query.Shape[0], in.Query.Shape[1]
	if args.Out.Rank != 3 || args.Out.DType != tensor.F32 || args.Out.Shape[0] != tokens || args.Out.Shape[1] != heads || !args.LSE.IsZero() || meanKey.Rank != 3 || meanValue.Rank != 3 {
		return fmt.Errorf("attention: nsa: Out is %v, LSE %v, means %v and %v, want F32 [%d, %d, ValueDim], none, and [pages, KVHeads, dim]", &args.Out, &args.LSE, &meanKey, &meanValue, tokens, heads)
	}
	for i := range gates {
		if g := &gates[i]; g.Rank != 2 || g.DType != tensor.F32 || g.Shape[0] != tokens || g.Shape[1] != heads {
			return fmt.Errorf("attention: nsa: gates %d are %v, want F32 [%d, %d]", i, g, tokens, heads)
		}
		if err := onHost("nsa", &gates[i], &args.Out); err != nil {
			return err
		}
	}
	importance, out, err := a.compress(in, args, meanKey, meanValue)
	if err != nil {
		return err
	}
	// A KV head is a row of scores.
	shared := *in
	shared.Query.Shape[1] = int64(in.KVHeads)
	if a.Selected, err = shared.chooseScored(ops, importance, budget{a.m.Sinks, a.m.Recent, a.m.Blocks - a.m.Sinks - a.m.Recent}); err != nil {
		return err
	}
	step := Step{KV: &pageTables{in.PageSize, in.SeqLens, in.Pages}, Blocks: a.Selected}
	for s := range in.SeqLens {
		step.QueryLens = append(step.QueryLens, int(in.QueryStart[s+1]-in.QueryStart[s]))
	}
	parts := [3]tensor.View{out}
	for i, x := range []*Attention{a.selected, a.window} {
		one := *args
		one.Out = tensor.New(tensor.F32, args.Out.Shape[0], args.Out.Shape[1], args.Out.Shape[2])
		if err := x.Plan(step); err != nil {
			return err
		}
		if err := x.Run(&one); err != nil {
			return err
		}
		parts[i+1], step.Blocks = one.Out, kernel.BlockSparse{}
	}
	for t := range tokens {
		for h := range heads {
			for d := range args.Out.Shape[2] {
				sum := float32(0)
				for i := range parts {
					if g := gates[i].At(t, h); g != 0 {
						sum += float32(g * parts[i].At(t, h, d))
					}
				}
				args.Out.Set(sum, t, h, d)
			}
		}
	}
	return nil
}

// compress runs the compressed attention and returns how much each block got from
// the heads of each KV head, [tokens, KVHeads, blocks].
func (a *NSAAttention) compress(in *Selection, args *kernel.Args, meanKey, meanValue tensor.View) (importance, out tensor.View, err error) {
	tokens, heads, kvHeads := in.Query.Shape[0], in.Query.Shape[1], int64(in.KVHeads)
	tables, columns, step := &pageTables{size: 1, pages: kernel.BlockTable{Indptr: []int32{0}}}, int64(1), Step{}
	in.eachKey(func(s int, own int64) {
		full := (own + 1) / int64(in.PageSize)
		pages := in.Pages.Indices[in.Pages.Indptr[s]:]
		tables.lens = append(tables.lens, int32(full))
		tables.pages.Indices = append(tables.pages.Indices, pages[:full]...)
		tables.pages.Indptr = append(tables.pages.Indptr, int32(len(tables.pages.Indices)))
		columns, step.QueryLens = max(columns, own/int64(in.PageSize)+1), append(step.QueryLens, 1)
	})
	importance, out = tensor.New(tensor.F32, tokens, kvHeads, columns), tensor.New(tensor.F32, tokens, heads, args.Out.Shape[2])
	if tokens == 0 {
		return importance, out, nil
	}
	step.KV = tables
	if err := a.compressed.Plan(step); err != nil {
		return importance, out, err
	}
	one := *args
	one.Key, one.Value, one.Out, one.LSE = single(meanKey), single(meanValue), out, tensor.New(tensor.F32, tokens, heads)
	if err := a.compressed.Run(&one); err != nil {
		return importance, out, err
	}
	stats := tensor.New(tensor.F32, int64(len(tables.pages.Indices)), heads)
	if err := a.compressed.ColumnStats(&kernel.ColumnStatsArgs{Query: one.Query, Key: one.Key, LSE: one.LSE, Power: 1, Out: stats}); err != nil {
		return importance, out, err
	}
	x, y := stats.F32s(), importance.F32s()
	for t := range tokens {
		for i := range int64(tables.lens[t]) {
			row := x[(int64(tables.pages.Indptr[t])+i)*heads:][:heads]
			for h, w := range row {
				y[(t*kvHeads+int64(h)/(heads/kvHeads))*columns+i] += w
			}
		}
	}
	return importance, out, nil
}

// single makes [pages, KVHeads, dim] a cache of pages of one key.
func single(v tensor.View) tensor.View {
	v.Rank = 4
	v.Shape = [tensor.MaxRank]int64{v.Shape[0], 1, v.Shape[1], v.Shape[2]}
	v.Stride = [tensor.MaxRank]int64{v.Stride[0], v.Stride[0], v.Stride[1], v.Stride[2]}
	return v
}
