package attention

import (
	"fmt"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Clusters of keys, for selectors that score centroids in their stead.

// eachPage calls f with the first rows[i] keys of pages[i], [rows, KVHeads, dim].
func eachPage(name string, key *tensor.View, pages, rows []int32, f func(i int, keys tensor.View) error) error {
	if err := onHost(name, key); err != nil {
		return err
	}
	if key.Rank != 4 || len(rows) != len(pages) {
		return fmt.Errorf("attention: %s: keys are %v, of %d pages and %d counts, want [pages, PageSize, KVHeads, dim] and a count a page", name, key, len(pages), len(rows))
	}
	for i, p := range pages {
		if p < 0 || int64(p) >= key.Shape[0] || rows[i] < 0 || int64(rows[i]) > key.Shape[1] {
			return fmt.Errorf("attention: %s: page %d with %d keys, want one of %d with at most %d", name, p, rows[i], key.Shape[0], key.Shape[1])
		}
		if rows[i] > 0 {
			if err := f(i, page(key, p, int64(rows[i]))); err != nil {
				return err
			}
		}
	}
	return nil
}

// page is the first rows of a page [PageSize, …] of a tensor of them.
func page(v *tensor.View, p int32, rows int64) tensor.View {
	out := *v
	out.Rank, out.Offset = v.Rank-1, v.Offset+int64(p)*v.Stride[0]
	copy(out.Shape[:], v.Shape[1:])
	copy(out.Stride[:], v.Stride[1:])
	out.Shape[3], out.Stride[3] = 0, 0
	out.Shape[0] = rows
	return out
}

// clusters are n centroids of each KV head.
type clusters struct {
	n, heads, dim int
	centroids     tensor.View // [1, n, heads, dim] F32
	scores        tensor.View // room for those of some rows
}

func newClusters(n, heads, dim int) *clusters {
	return &clusters{n: n, heads: heads, dim: dim, centroids: tensor.New(tensor.F32, 1, int64(n), int64(heads), int64(dim))}
}

// nearest calls f with each row, head and its nearest centroid, of equally near ones
// the first: the largest k·c − |c|²/2.
func (c *clusters) nearest(ops kernel.Ops, rows tensor.View, f func(row, head, cluster int)) error {
	if c.scores.IsZero() || c.scores.Shape[0] < rows.Shape[0] {
		c.scores = tensor.New(tensor.F32, rows.Shape[0], int64(c.heads), int64(c.n))
	}
	out := c.scores.Slice(0, 0, rows.Shape[0])
	if err := project(ops, rows, c.centroids, out); err != nil {
		return err
	}
	x, half := out.F32s(), c.halfNorms()
	for row := range int(rows.Shape[0]) {
		for g := range c.heads {
			scores, best := x[(row*c.heads+g)*c.n:][:c.n], 0
			most := scores[0] - half[g*c.n]
			for i, s := range scores {
				if s -= half[g*c.n+i]; s > most {
					best, most = i, s
				}
			}
			f(row, g, best)
		}
	}
	return nil
}

func (c *clusters) halfNorms() []float32 {
	out, x := make([]float32, c.heads*c.n), c.centroids.F32s()
	for i := range c.n {
		for g := range c.heads {
			sum := 0.0
			for _, v := range x[(i*c.heads+g)*c.dim:][:c.dim] {
				sum += float64(v) * float64(v)
			}
			out[g*c.n+i] = float32(sum / 2)
		}
	}
	return out
}

// kMeans is Lloyd's algorithm on the keys of pages, from keys that lie evenly among
// them. A centroid that no key is nearest to stays.
func kMeans(ops kernel.Ops, name string, key tensor.View, pages, rows []int32, n, iterations int) (*clusters, error) {
	total := 0
	if err := eachPage(name, &key, pages, rows, func(i int, _ tensor.View) error { total += int(rows[i]); return nil }); err != nil {
		return nil, err
	}
	if n < 1 || total < n || iterations < 0 {
		return nil, fmt.Errorf("attention: %s: %d clusters of %d keys in %d iterations, want 1 cluster to as many as keys, and at least 0 iterations", name, n, total, iterations)
	}
	c := newClusters(n, int(key.Shape[2]), int(key.Shape[3]))
	first, next := 0, 0
	x := c.centroids.F32s()
	if err := eachPage(name, &key, pages, rows, func(i int, keys tensor.View) error {
		for ; next < n && next*total/n < first+int(rows[i]); next++ {
			for g := range c.heads {
				for d := range c.dim {
					x[(next*c.heads+g)*c.dim+d] = keys.At(int64(next*total/n-first), int64(g), int64(d))
				}
			}
		}
		first += int(rows[i])
		return nil
	}); err != nil {
		return nil, err
	}
	for range iterations {
		sums, counts := make([]float64, len(x)), make([]int, n*c.heads)
		if err := eachPage(name, &key, pages, rows, func(_ int, keys tensor.View) error {
			return c.nearest(ops, keys, func(row, g, cluster int) {
				at := cluster*c.heads + g
				counts[at]++
				for d := range c.dim {
					sums[at*c.dim+d] += float64(keys.At(int64(row), int64(g), int64(d)))
				}
			})
		}); err != nil {
			return nil, fmt.Errorf("attention: %s: %w", name, err)
		}
		for at, count := range counts {
			for d := range c.dim {
				if count > 0 {
					x[at*c.dim+d] = float32(sums[at*c.dim+d] / float64(count))
				}
			}
		}
	}
	return c, nil
}
