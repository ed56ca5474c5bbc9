// Coleman Hooper et al., "Squeezed Attention: Accelerating Long Context Length LLM Inference", 2024, https://arxiv.org/abs/2411.09688

package attention

import (
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// SqueezedAttention scores the centroids of a fixed prefix's keys, which k-means
// found before, and reads the keys of those that get enough of the softmax. With
// N_i keys nearest to centroid C_i,
//
//	S_i = exp(Scale·q·C_i) / Σ_n N_n·exp(Scale·q·C_n)
//
// and a query head sees the keys of the clusters with S_i > Threshold, and all keys
// after the prefix. With several query heads to a KV head, a KV head reads the keys
// that any of them chose. A negative Threshold is dense attention.
//
// Claim: 3 times fewer keys with no loss, for many queries over one long prefix.
//
// Cost: 2·HeadDim FLOPs a centroid and query head and its exponential, then
// attention over what was chosen. k-means costs 2·n·HeadDim FLOPs a key and
// iteration for n centroids.
//
// Limits: for decode, over a prefix clustered before; one sequence a call has one
// prefix. How many keys are read depends on the query: Threshold is set on some
// text. The paper's second level of centroids, by which
// most of the first are not scored, is not here: each query head would score a list of
// its own, and RowScores has one table for all heads of a sequence.
type SqueezedAttention struct {
	Threshold float64 // of S, below 1; not NaN
}

// Info describes the selector.
func (SqueezedAttention) Info() SelectorInfo {
	return SelectorInfo{"squeezedattention", "arXiv:2411.09688", "decode", "clusters of the keys of a fixed prefix"}
}

// SqueezedPrefix are the clusters of the first keys of a sequence.
type SqueezedPrefix struct {
	Centroids tensor.View // [1, n, KVHeads, HeadDim] F32
	Keys      int         // clustered
	// Members are the keys of cluster i of KV head g, ascending:
	// Members[Start[g·n+i]:Start[g·n+i+1]].
	Start, Members []int32
}

// Cluster finds n clusters of the first so many keys of a sequence, in its pages in
// their order, in host memory.
func (SqueezedAttention) Cluster(ops kernel.Ops, key tensor.View, pages []int32, keys, n, iterations int) (*SqueezedPrefix, error) {
	if key.Rank != 4 || key.Shape[1] < 1 || keys < 1 || int64(len(pages)) < (int64(keys)+key.Shape[1]-1)/key.Shape[1] {
		return nil, fmt.Errorf("attention: squeezedattention: %d keys of %d pages %v, want at least a key, and pages for all", keys, len(pages), &key)
	}
	var rows []int32
	for at := 0; at < keys; at += int(key.Shape[1]) {
		rows = append(rows, int32(min(int64(keys-at), key.Shape[1])))
	}
	pages = pages[:len(rows)]
	c, err := kMeans(ops, "squeezedattention", key, pages, rows, n, iterations)
	if err != nil {
		return nil, err
	}
	labels := make([]int, c.heads*keys)
	counts := make([]int32, c.heads*n+1)
	if err := eachPage("squeezedattention", &key, pages, rows, func(i int, block tensor.View) error {
		return c.nearest(ops, block, func(row, g, cluster int) {
			labels[g*keys+i*int(key.Shape[1])+row] = g*n + cluster
			counts[g*n+cluster+1]++
		})
	}); err != nil {
		return nil, fmt.Errorf("attention: squeezedattention: %w", err)
	}
	for i := range len(counts) - 1 {
		counts[i+1] += counts[i]
	}
	out := &SqueezedPrefix{Centroids: c.centroids, Keys: keys, Start: slices.Clone(counts), Members: make([]int32, c.heads*keys)}
	for i, l := range labels {
		out.Members[counts[l]] = int32(i % keys)
		counts[l]++
	}
	return out, nil
}

func (p *SqueezedPrefix) check(in *Selection) error {
	if p == nil || p.Centroids.Rank != 4 || p.Centroids.Shape[0] != 1 || p.Centroids.Shape[2] != int64(in.KVHeads) || p.Keys < 0 || int64(len(p.Start)) != p.Centroids.Shape[1]*int64(in.KVHeads)+1 {
		return fmt.Errorf("attention: squeezedattention: the prefix does not belong to %d KV heads, want one of Cluster", in.KVHeads)
	}
	for i, j := range p.Members {
		if j < 0 || int(j) >= p.Keys {
			return fmt.Errorf("attention: squeezedattention: member %d is key %d, want 0 to %d", i, j, p.Keys-1)
		}
	}
	for i := range len(p.Start) - 1 {
		if p.Start[i] < 0 || p.Start[i] > p.Start[i+1] || int(p.Start[i+1]) > len(p.Members) {
			return fmt.Errorf("attention: squeezedattention: cluster %d has members %d to %d, want 0 to %d", i, p.Start[i], p.Start[i+1], len(p.Members))
		}
	}
	for s, n := range in.SeqLens {
		if queries := int64(in.QueryStart[s+1]) - int64(in.QueryStart[s]); queries > 0 && int64(n)-queries < int64(p.Keys) {
			return fmt.Errorf("attention: squeezedattention: sequence %d has %d keys before its queries, want at least the %d of the prefix", s, int64(n)-queries, p.Keys)
		}
	}
	return nil
}

// Select lists the keys of each query token and KV head. All sequences begin with
// the prefix. in.Scores, in host memory, has room for the centroids.
func (m SqueezedAttention) Select(ops kernel.Ops, in *Selection, prefix *SqueezedPrefix) (*Keys, error) {
	if !(m.Threshold < 1) {
		return nil, fmt.Errorf("attention: squeezedattention: Threshold is %v, want below 1", m.Threshold)
	}
	if err := in.check(); err != nil {
		return nil, err
	}
	if err := prefix.check(in); err != nil {
		return nil, err
	}
	if in.Scores.Rank != 3 || in.Scores.Shape[2] < prefix.Centroids.Shape[1] {
		return nil, fmt.Errorf("attention: squeezedattention: Scores is %v, want room for %d centroids", &in.Scores, prefix.Centroids.Shape[1])
	}
	if err := onHost("squeezedattention", &in.Scores); err != nil {
		return nil, err
	}
	n, heads := int(prefix.Centroids.Shape[1]), int(in.Query.Shape[1])
	scores := in.Scores.Slice(2, 0, int64(n))
	if err := ops.RowScores(&kernel.RowScoresArgs{
		Query: in.Query, Key: prefix.Centroids, Scale: in.Scale, Policy: in.Policy, Out: scores,
		KeyTable: kernel.KeyTable{QueryStart: []int32{0, int32(in.Query.Shape[0])}, SeqLens: []int32{int32(n)}, Pages: kernel.BlockTable{Indptr: []int32{0, 1}, Indices: []int32{0}}},
	}); err != nil {
		return nil, fmt.Errorf("attention: squeezedattention: %w", err)
	}
	group, t := heads/in.KVHeads, 0
	out, seen := &Keys{Indptr: []int32{0}}, make([]bool, n)
	in.eachKey(func(_ int, own int64) {
		for g := range in.KVHeads {
			clear(seen)
			for h := g * group; h < (g+1)*group; h++ {
				m.above(&scores, t, h, prefix.Start[g*n:][:n+1], seen)
			}
			start := len(out.Indices)
			for i, yes := range seen {
				if yes {
					out.Indices = append(out.Indices, prefix.Members[prefix.Start[g*n+i]:prefix.Start[g*n+i+1]]...)
				}
			}
			slices.Sort(out.Indices[start:])
			for j := int64(prefix.Keys); j <= own; j++ {
				out.Indices = append(out.Indices, int32(j))
			}
			out.Indptr = append(out.Indptr, int32(len(out.Indices)))
		}
		t++
	})
	return out, nil
}

// above marks the clusters, of the members between bounds, whose share of the softmax
// of a row is above the threshold.
func (m SqueezedAttention) above(scores *tensor.View, token, head int, bounds []int32, seen []bool) {
	x := scores.F32s()[scores.Offset+int64(token)*scores.Stride[0]+int64(head)*scores.Stride[1]:]
	most, total := math.Inf(-1), 0.0
	for i := range seen {
		if bounds[i+1] > bounds[i] {
			most = max(most, float64(x[int64(i)*scores.Stride[2]]))
		}
	}
	weights := make([]float64, len(seen))
	for i := range weights {
		weights[i] = xmath.Exp(min(float64(x[int64(i)*scores.Stride[2]])-most, 700)) // an empty cluster may be above all
		if count := bounds[i+1] - bounds[i]; count > 0 {
			total += float64(count) * weights[i]
		}
	}
	for i, w := range weights {
		seen[i] = seen[i] || w/total > m.Threshold
	}
}
