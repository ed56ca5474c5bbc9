package codec

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// Chang et al., "Palu: Compressing KV-Cache with Low-Rank Projection",
// https://arxiv.org/abs/2407.21118
//
// Keys and values are held as their coordinates in a basis of fewer features. The
// paper has it from the weights of the projections; here the caller gives it, or
// Principal finds it from rows. The paper makes keys whole again before it rotates
// them; here they are rotated first, and attention works in the basis: the scores
// and outputs of a cache without loss are those of the projected rows.
//
// Limits: rotated keys need more features than others; rows are multiplied in host
// memory.
type Palu struct{ KeyRank, ValueRank int }

// Apply makes the rows of a cache as short as the ranks.
func (p Palu) Apply(c *kvcache.Config) {
	plain(tensor.F16)(c)
	c.KeyStorage = kernel.PostRoPE
	c.HeadDim, c.ValueDim = p.KeyRank, p.ValueRank
}

// Bases are the first features of rows, to be replaced by those of a model.
func (p Palu) Bases(dim, valueDim int) Bases {
	first := func(in, out int) tensor.View {
		return matrix(in, out, func(i, d int) float64 {
			if i == d {
				return 1
			}
			return 0
		})
	}
	return Bases{Query: first(dim, p.KeyRank), Key: first(dim, p.KeyRank), Value: first(valueDim, p.ValueRank), Out: first(p.ValueRank, valueDim)}
}

// Orthogonal are the Bases of two matrices of orthonormal columns, [heads, dim, rank]:
// of keys (and queries) and of values, whose outputs go back by the transpose.
func Orthogonal(key, value tensor.View) Bases { return Bases{key, key, value, value.Swap(1, 2)} }

// Principal finds the basis of rank features in which rows [n·dim] lose least, as
// their principal components without taking the mean: [1, dim, rank], columns
// orthonormal, the largest first.
func Principal(rows []float32, dim, rank int) (tensor.View, error) {
	if dim < 1 || rank < 1 || rank > dim || len(rows)%dim != 0 {
		return tensor.View{}, &ValueError{"rank", fmt.Sprintf("%d of rows of %d numbers of %d features", rank, len(rows), dim), "1 to the features, and whole rows"}
	}
	a := make([]float64, dim*dim)
	for at := 0; at < len(rows); at += dim {
		for i, x := range rows[at : at+dim] {
			for j, y := range rows[at : at+dim] {
				a[i*dim+j] += float64(float64(x) * float64(y))
			}
		}
	}
	v := jacobi(a, dim)
	order := largestFirst(a, dim)
	return matrix(dim, rank, func(i, d int) float64 { return v[i*dim+order[d]] }), nil
}

// jacobi turns a symmetric matrix until it is diagonal and returns the columns it
// was turned to (Golub and Van Loan, Matrix Computations, 8.5).
func jacobi(a []float64, n int) []float64 {
	v := make([]float64, n*n)
	for i := range n {
		v[i*n+i] = 1
	}
	for range 60 {
		off, on := 0.0, 0.0
		for i := range n {
			on += a[i*n+i] * a[i*n+i]
			for j := range i {
				off += a[i*n+j] * a[i*n+j]
			}
		}
		if !(off > 1e-28*on) {
			break
		}
		for p := range n {
			for q := p + 1; q < n; q++ {
				if a[p*n+q] == 0 {
					continue
				}
				tau := (a[q*n+q] - a[p*n+p]) / (2 * a[p*n+q])
				t := 1 / (math.Abs(tau) + math.Sqrt(1+float64(tau*tau)))
				if tau < 0 {
					t = -t
				}
				c := 1 / math.Sqrt(1+float64(t*t))
				turn(a, v, n, p, q, c, t*c)
			}
		}
	}
	return v
}

// turn rotates rows and columns p and q of a, and columns of v.
func turn(a, v []float64, n, p, q int, c, s float64) {
	mix := func(x, y *float64) {
		*x, *y = float64(c**x)-float64(s**y), float64(s**x)+float64(c**y)
	}
	for k := range n {
		mix(&a[k*n+p], &a[k*n+q])
	}
	for k := range n {
		mix(&a[p*n+k], &a[q*n+k])
		mix(&v[k*n+p], &v[k*n+q])
	}
}

// largestFirst orders columns by the diagonal.
func largestFirst(a []float64, n int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
		for k := i; k > 0 && a[order[k]*n+order[k]] > a[order[k-1]*n+order[k-1]]; k-- {
			order[k], order[k-1] = order[k-1], order[k]
		}
	}
	return order
}
