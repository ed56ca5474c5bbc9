// Hailin Zhang et al., "PQCache: Product Quantization-based KVCache for Long Context LLM Inference", 2024, https://arxiv.org/abs/2407.12820

package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// PQCache scores keys by codes. The features of a key fall into Parts parts, and
// of each part the nearest of Codes centroids, found by k-means over the keys of
// the prompt, is kept: a byte. With the part's centroids c
//
//	score(j) = Scale · Σ_p q_p · c_p[code_p(j)]
//
// and a query head sees its Keys keys of the largest score. Sinks first and Recent
// last keys are seen whatever their score and count in Keys. With several query
// heads to a KV head, a KV head reads the keys that any of them chose.
//
// Claim: with a fifth of the keys, close to dense; the paper keeps 2 parts of 64
// codes, 12 bits a key and head.
//
// Cost: 2·Codes·HeadDim FLOPs and Parts additions a key, for each query head;
// Parts bytes a key; TopK over all keys; then attention over what was chosen.
// k-means costs 2·Codes·HeadDim FLOPs a key and iteration.
//
// Limits: for decode. Keys that come later are coded with centroids of the prompt.
// The published code, for several query heads to a KV head, takes the keys of the
// largest sum of their softmaxes; with one, the keys are the same. On the CPU scores
// and TopK cost more than they save at 32k keys and a budget of 4096, not at 128k
// (`go run ./bench select`).
type PQCache struct {
	Keys   int // keys a query head sees, at least 1
	Sinks  int // of these, first keys, at least 0
	Recent int // of these, last keys, the query's own included, at least 1

	Parts int // of the features, a divisor of HeadDim
	Codes int // centroids of a part, a power of two, 2 to 256
}

// Info describes the selector.
func (PQCache) Info() SelectorInfo {
	return SelectorInfo{"pqcache", "arXiv:2407.12820", "decode", "centroids of the parts of keys; a code a part of each key"}
}

func (p PQCache) check(dim int64) error {
	if err := checkKeys("pqcache", p.Keys, p.Sinks, p.Recent); err != nil {
		return err
	}
	if p.Parts < 1 || dim < 1 || dim%int64(p.Parts) != 0 || p.Codes < 2 || p.Codes > 256 || p.Codes&(p.Codes-1) != 0 {
		return fmt.Errorf("attention: pqcache: %d parts of %d features with %d codes, want a divisor and 2, 4, … 256 codes", p.Parts, dim, p.Codes)
	}
	return nil
}

// Train finds the centroids of the keys of pages, rows[i] of pages[i], by k-means:
// [Parts, Codes, KVHeads, HeadDim/Parts] F32.
func (p PQCache) Train(ops kernel.Ops, key tensor.View, pages, rows []int32, iterations int) (tensor.View, error) {
	if err := p.check(key.Shape[3]); err != nil {
		return tensor.View{}, err
	}
	sub := key.Shape[3] / int64(p.Parts)
	var all []float32
	for part := range int64(p.Parts) {
		c, err := kMeans(ops, "pqcache", key.Slice(3, part*sub, (part+1)*sub), pages, rows, p.Codes, iterations)
		if err != nil {
			return tensor.View{}, err
		}
		all = append(all, c.centroids.F32s()...)
	}
	return tensor.FromF32(all, int64(p.Parts), int64(p.Codes), key.Shape[2], sub), nil
}

// Encode writes the codes of the first rows[i] keys of pages[i] to codes
// [pages, PageSize, KVHeads, Parts] U8, in host memory.
func (p PQCache) Encode(ops kernel.Ops, key, centroids, codes tensor.View, pages, rows []int32) error {
	if err := p.check(key.Shape[3]); err != nil {
		return err
	}
	if err := p.checkCentroids(&centroids, key.Shape[2], key.Shape[3]); err != nil {
		return err
	}
	if codes.Rank != 4 || codes.DType != tensor.U8 || codes.Shape != [tensor.MaxRank]int64{key.Shape[0], key.Shape[1], key.Shape[2], int64(p.Parts)} {
		return fmt.Errorf("attention: pqcache: codes are %v, want u8 of %d parts for keys %v", &codes, p.Parts, &key)
	}
	if err := onHost("pqcache", &codes, &centroids); err != nil {
		return err
	}
	sub, bytes := key.Shape[3]/int64(p.Parts), codes.Bits8()
	for part := range int64(p.Parts) {
		c := newClusters(p.Codes, int(key.Shape[2]), int(sub))
		copy(c.centroids.F32s(), centroids.F32s()[centroids.Offset+part*centroids.Stride[0]:])
		some := key.Slice(3, part*sub, (part+1)*sub)
		if err := eachPage("pqcache", &some, pages, rows, func(i int, keys tensor.View) error {
			return c.nearest(ops, keys, func(row, g, code int) {
				bytes[codes.Offset+int64(pages[i])*codes.Stride[0]+int64(row)*codes.Stride[1]+int64(g)*codes.Stride[2]+part*codes.Stride[3]] = uint8(code)
			})
		}); err != nil {
			return err
		}
	}
	return nil
}

func (p PQCache) checkCentroids(c *tensor.View, heads, dim int64) error {
	want := tensor.New(tensor.F32, int64(p.Parts), int64(p.Codes), heads, dim/int64(p.Parts))
	if c.Rank != 4 || c.DType != tensor.F32 || c.Shape != want.Shape || c.Stride != want.Stride {
		return fmt.Errorf("attention: pqcache: centroids are %v, want %v", c, &want)
	}
	return nil
}

// Select lists the keys of each query token and KV head.
func (p PQCache) Select(ops kernel.Ops, in *Selection, centroids, codes tensor.View) (*Keys, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	if err := p.check(in.Query.Shape[2]); err != nil {
		return nil, err
	}
	if err := p.checkCentroids(&centroids, int64(in.KVHeads), in.Query.Shape[2]); err != nil {
		return nil, err
	}
	tokens, heads, n, sub := in.Query.Shape[0], in.Query.Shape[1], int64(p.Codes), in.Query.Shape[2]/int64(p.Parts)
	table := tensor.New(tensor.F32, tokens, heads, int64(p.Parts)*n)
	for part := range int64(p.Parts) {
		if err := ops.RowScores(&kernel.RowScoresArgs{
			Query: in.Query.Slice(2, part*sub, (part+1)*sub), Key: centroids, Scale: in.Scale, Policy: in.Policy, Out: table.Slice(2, part*n, (part+1)*n),
			KeyTable: kernel.KeyTable{QueryStart: []int32{0, int32(tokens)}, SeqLens: []int32{int32(n)}, Pages: kernel.BlockTable{Indptr: []int32{0, 1}, Indices: []int32{int32(part)}}},
		}); err != nil {
			return nil, fmt.Errorf("attention: pqcache: %w", err)
		}
	}
	if err := ops.CodeScores(&kernel.CodeScoresArgs{Table: table, Codes: codes, KeyTable: in.keyTable(), Out: in.Scores}); err != nil {
		return nil, fmt.Errorf("attention: pqcache: %w", err)
	}
	return in.chooseKeys(ops, in.Scores, budget{p.Sinks, p.Recent, p.Keys - p.Sinks - p.Recent})
}
