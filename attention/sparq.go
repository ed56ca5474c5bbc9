// Luka Ribar et al., "SparQ Attention: Bandwidth-Efficient LLM Inference", 2023, https://arxiv.org/abs/2312.04985

package attention

import (
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// SparQ scores keys over the Rank features in which the query is largest, and
// gives the weight of the keys it leaves out to the mean of all values. With C the
// Rank features of the largest Σ_h |q_h,c| over the heads of a group, of equal ones
// the first,
//
//	x_h(j) = Σ_{c∈C} q_h,c·k_j,c / √(HeadDim·Σ_{c∈C}|q_h,c|/Σ_c|q_h,c|)
//	α_h    = Σ_{j chosen} softmax(x_h)_j
//	Out_h  = α_h·attention(q_h, chosen) + (1 − α_h)·mean(V)
//
// and a KV head sees its Keys keys of the largest Σ_h x_h(j). Recent last keys,
// the query's own included, are seen whatever their score and count in Keys: the
// published code's k+1 and local_k+1. Sinks first keys can be had beside it. Rank of
// HeadDim is an exact top-k.
//
// Claim: up to 8 times fewer bytes a token with little loss.
//
// Cost: 2·Rank FLOPs a key and query head, Rank/HeadDim of the keys' bytes, TopK
// over all keys of a KV head, then attention over Keys keys. The mean costs the
// exponential of the score of each key and query head.
//
// Limits: for decode. Reading only some features pays where those of neighbouring
// keys lie together: a second copy of the keys with slots side by side (AppendKV
// writes such a view); without it a cache line is read for each feature. Queries and
// scores are in host memory. Where the features left out matter, α is too small: with
// planted keys the mean makes the output worse, and at 32k keys slower than dense
// attention (`go run ./bench select`).
type SparQ struct {
	Rank   int // features scored by, 1 to HeadDim
	Keys   int // keys a KV head sees, at least 1
	Sinks  int // of these, first keys, at least 0
	Recent int // of these, last keys, the query's own included, at least 1
}

// Info describes the selector.
func (SparQ) Info() SelectorInfo {
	return SelectorInfo{"sparq", "arXiv:2312.04985", "decode", "a copy of the keys with slots side by side; the mean of the values"}
}

// Select lists the keys of each query token and KV head. key is [pages, PageSize,
// KVHeads, HeadDim], best with slots of stride 1.
func (s SparQ) Select(ops kernel.Ops, in *Selection, key tensor.View) (*Keys, error) {
	keys, _, err := s.choose(ops, in, key, nil)
	return keys, err
}

// SelectWithMean also returns α of each query token and head, for Correct.
func (s SparQ) SelectWithMean(b kernel.Backend, in *Selection, key tensor.View) (keys *Keys, alpha []float32, err error) {
	return s.choose(b, in, key, b)
}

// choose finds shares too if there is a backend to do it.
func (s SparQ) choose(ops kernel.Ops, in *Selection, key tensor.View, mean kernel.Backend) (*Keys, []float32, error) {
	if err := checkKeys("sparq", s.Keys, s.Sinks, s.Recent); err != nil {
		return nil, nil, err
	}
	if err := in.check(); err != nil {
		return nil, nil, err
	}
	dim := int(in.Query.Shape[2])
	if s.Rank < 1 || s.Rank > dim {
		return nil, nil, fmt.Errorf("attention: sparq: Rank is %d, want 1 to HeadDim %d", s.Rank, dim)
	}
	q, err := in.hostQuery("sparq")
	if err != nil {
		return nil, nil, err
	}
	channels, scaled, summed := s.prepare(q, int(in.Query.Shape[1]), in.KVHeads, dim)
	tokens, heads := in.Query.Shape[0], in.Query.Shape[1]
	score := func(query []float32, rows int64) (tensor.View, error) {
		out, err := in.keyScores("sparq", int(rows))
		if err != nil {
			return out, err
		}
		if err := ops.RowScores(&kernel.RowScoresArgs{
			Query: tensor.FromF32(query, tokens, rows, int64(dim)), Key: key, Channels: channels, KeyTable: in.keyTable(), Scale: 1, Policy: in.Policy, Out: out,
		}); err != nil {
			return out, fmt.Errorf("attention: sparq: %w", err)
		}
		return out, nil
	}
	b := budget{s.Sinks, s.Recent, s.Keys - s.Sinks - s.Recent}
	if mean == nil {
		out, err := score(summed, int64(in.KVHeads))
		if err != nil {
			return nil, nil, err
		}
		keys, err := in.chooseKeys(ops, out, b)
		return keys, nil, err
	}
	out, err := score(scaled, heads)
	if err != nil {
		return nil, nil, err
	}
	if err := onHost("sparq", &out); err != nil {
		return nil, nil, err
	}
	keys, err := in.chooseKeys(ops, groupSums(&out, int64(in.KVHeads)), b)
	if err != nil {
		return nil, nil, err
	}
	alpha, err := in.shares(mean, &out, keys)
	return keys, alpha, err
}

// groupSums adds scores [tokens, Heads, keys] of the heads of a group.
func groupSums(scores *tensor.View, kvHeads int64) tensor.View {
	out := tensor.New(tensor.F32, scores.Shape[0], kvHeads, scores.Shape[2])
	x, group := scores.F32s(), scores.Shape[1]/kvHeads
	for t := range out.Shape[0] {
		for g := range kvHeads {
			sum := out.F32s()[(t*kvHeads+g)*out.Shape[2]:][:out.Shape[2]]
			for h := g * group; h < (g+1)*group; h++ {
				at := scores.Offset + t*scores.Stride[0] + h*scores.Stride[1]
				for j := range sum {
					sum[j] += x[at+int64(j)*scores.Stride[2]]
				}
			}
		}
	}
	return out
}

// prepare has the channels of each token and KV head, the queries over their
// scales, and the sums of these over a group.
func (s SparQ) prepare(q []float32, heads, kvHeads, dim int) (channels []int32, scaled, summed []float32) {
	group := heads / kvHeads
	order, size := make([]int32, dim), make([]float32, dim)
	for first := 0; first < len(q); first += group * dim {
		for d := range dim {
			order[d], size[d] = int32(d), 0
			for h := range group {
				size[d] += float32(math.Abs(float64(q[first+h*dim+d])))
			}
		}
		slices.SortStableFunc(order, func(a, b int32) int {
			switch {
			case size[a] > size[b]:
				return -1
			case size[a] < size[b]:
				return 1
			}
			return 0
		})
		list := slices.Clone(order[:s.Rank])
		slices.Sort(list)
		channels = append(channels, list...)
		sum := make([]float32, dim)
		for h := range group {
			head := q[first+h*dim:][:dim]
			part, all := 0.0, 0.0
			for _, x := range head {
				all += math.Abs(float64(x))
			}
			for _, c := range list {
				part += math.Abs(float64(head[c]))
			}
			scale := 1.0
			if part > 0 {
				scale = 1 / math.Sqrt(float64(dim)*part/all)
			}
			for d, x := range head {
				y := float32(float64(x) * scale)
				scaled = append(scaled, y)
				sum[d] += y
			}
		}
		summed = append(summed, sum...)
	}
	return channels, scaled, summed
}

// shares is how much of the softmax of scores [tokens, Heads, keys] over the keys
// that a token may see falls to the keys listed. The sums of exponentials are the LSE
// of attention whose keys have one feature, the score.
func (in *Selection) shares(b kernel.Backend, scores *tensor.View, keys *Keys) ([]float32, error) {
	if err := onHost("sparq", scores); err != nil {
		return nil, err
	}
	heads, rows := int(scores.Shape[1]), scores.Shape[0]*scores.Shape[1]
	total := (scores.Shape[0]-1)*scores.Stride[0] + (scores.Shape[1]-1)*scores.Stride[1] + scores.Shape[2]
	out := make([]float32, rows)
	if rows == 0 {
		return out, nil
	}
	if scores.Stride[2] != 1 || total > math.MaxInt32 {
		return nil, fmt.Errorf("attention: sparq: Scores is %v, want scores of a row side by side, and below 2³¹ of them", scores)
	}
	a, err := New(b, Config{Heads: 1, KVHeads: 1, HeadDim: 1, Mask: Bidirectional(), Scale: 1})
	if err != nil {
		return nil, err
	}
	defer a.Close()
	var step Step
	t := 0
	in.eachKey(func(_ int, own int64) {
		for h := range heads {
			step.QueryLens, step.KeyLens = append(step.QueryLens, 1), append(step.KeyLens, int(own)+1)
			step.KeyStarts = append(step.KeyStarts, t*int(scores.Stride[0])+h*int(scores.Stride[1]))
		}
		t++
	})
	if err := a.Plan(step); err != nil {
		return nil, err
	}
	key, query, lse := *scores, tensor.New(tensor.F32, rows, 1, 1), tensor.New(tensor.F32, rows, 1)
	key.Shape, key.Stride = [tensor.MaxRank]int64{total, 1, 1}, [tensor.MaxRank]int64{1, 1, 1}
	for i := range query.F32s() {
		query.F32s()[i] = 1
	}
	if err := a.Run(&kernel.Args{Query: query, Key: key, Value: key, Out: tensor.New(tensor.F32, rows, 1, 1), LSE: lse}); err != nil {
		return nil, err
	}
	x := scores.F32s()[scores.Offset:]
	for i, all := range lse.F32s() {
		part := 0.0
		for _, j := range keys.Of(i/heads, i%heads/(heads/in.KVHeads), in.KVHeads) {
			part += xmath.Exp(float64(x[step.KeyStarts[i]+int(j)]) - float64(all))
		}
		out[i] = float32(min(part, 1))
	}
	return out, nil
}

// Correct makes of Out, the attention over the chosen keys, that of SparQ. out is
// [tokens, Heads, ValueDim], mean likewise, the mean of a sequence's values of the
// KV head of each query head. It is a Merge of two states whose weights are α and
// 1 − α.
func (SparQ) Correct(ops kernel.Ops, out, mean tensor.View, alpha []float32) error {
	if out.Rank != 3 || int64(len(alpha)) != out.Shape[0]*out.Shape[1] {
		return fmt.Errorf("attention: sparq: %d shares for an output of %v, want one for each of its tokens and heads", len(alpha), &out)
	}
	kept, left := make([]float32, len(alpha)), make([]float32, len(alpha))
	for i, a := range alpha {
		if !(a >= 0 && a <= 1) {
			return fmt.Errorf("attention: sparq: share %d is %v, want 0 to 1", i, a)
		}
		kept[i], left[i] = float32(xmath.Log(float64(a))), float32(xmath.Log(1-float64(a)))
	}
	shape := []int64{out.Shape[0], out.Shape[1]}
	if err := ops.Merge(&kernel.MergeArgs{
		OutA: out, LSEA: tensor.FromF32(kept, shape...), OutB: mean, LSEB: tensor.FromF32(left, shape...),
		Out: out, LSE: tensor.New(tensor.F32, shape...),
	}); err != nil {
		return fmt.Errorf("attention: sparq: %w", err)
	}
	return nil
}
