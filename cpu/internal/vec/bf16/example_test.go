package bf16

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/kernel"
)

// causalBlock attends from rows, one a query token, to the keys before and at
// each: rows/Lanes strips, tile after tile. It is how a prefill calls this
// package. q is [rows][dim], k and v are [keys][dim], in bfloat16 all; the last
// query sees the last key.
func causalBlock(q, k, v []uint16, rows, keys, dim int, scale float32) (out, lse []float32) {
	strips := (rows + Lanes - 1) / Lanes
	t := &Tile{
		Key: Uint16s(Keys * dim), Value: Uint16s(Keys * dim), Query: Uint16s(strips * dim * Lanes),
		HeadDim: dim, ValueDim: dim, KeyParts: 1, QueryParts: 1,
		Scale: make([]float32, strips*Lanes), M: make([]float32, strips*Lanes), L: make([]float32, strips*Lanes),
		Out: Float32s(strips * dim * Lanes),
	}
	strip := make([]float32, dim*Lanes)
	for x := range strips {
		for i := range Lanes {
			t.Scale[x*Lanes+i], t.M[x*Lanes+i] = scale*kernel.Log2E, kernel.MaxStart
			for d := range dim {
				strip[d*Lanes+i] = 0
				if r := x*Lanes + i; r < rows {
					strip[d*Lanes+i] = wide(q[r*dim+d])
				}
			}
		}
		PackPairs(t.Query[x*dim*Lanes:], strip, dim, 1)
	}
	sc, rest, first := NewScratch(), make([]uint16, Keys*dim), keys-rows
	visible := make([]uint32, strips*Keys)
	for j0 := 0; j0 < keys; j0 += Keys {
		n := min(Keys, keys-j0)
		tile := func(x []uint16) []uint16 {
			if n == Keys {
				return x[j0*dim:]
			}
			clear(rest[copy(rest, x[j0*dim:]):])
			return rest
		}
		finite := PackKey(t.Key, tile(k), dim, dim)
		if finite = PackValue(t.Value, tile(v), dim, dim) && finite; !finite {
			panic("float32 kernels take a tile that is not finite")
		}
		t.Visible = nil
		if n < Keys || j0+Keys > first+1 { // some row does not see all
			t.Visible = visible
			clear(visible)
			for r := range rows {
				for j := range min(n, max(0, first+r+1-j0)) {
					visible[r/Lanes*Keys+j] |= 1 << (r % Lanes)
				}
			}
		}
		t.Attend(sc, strips)
	}
	for r := range rows {
		for d := range dim {
			out = append(out, t.Out[(r/Lanes*dim+d)*Lanes+r%Lanes]/t.L[r])
		}
		lse = append(lse, kernel.LSE(t.M[r], t.L[r]))
	}
	return out, lse
}

func wide(x uint16) float32 { return math.Float32frombits(uint32(x) << 16) }

// A causal block is what float64 says, with any remainder of rows and keys.
func TestCausalBlock(t *testing.T) {
	each(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(31, 32))
		for _, c := range [][2]int{{1, 1}, {5, 5}, {32, 64}, {33, 65}, {64, 64}, {100, 200}, {96, 511}} {
			const dim = 64
			rows, keys := c[0], c[1]
			qf, kf, vf := floats(r, rows*dim, true), floats(r, keys*dim, true), floats(r, keys*dim, true)
			q, k, v := words(qf), words(kf), words(vf)
			before := slices.Concat(q, k, v)
			out, lse := causalBlock(q, k, v, rows, keys, dim, 0.125)
			if !slices.Equal(before, slices.Concat(q, k, v)) {
				t.Fatal("inputs have changed")
			}
			for i := range rows {
				want, total := make([]float64, dim), 0.0
				for j := range keys - rows + i + 1 {
					s := 0.0
					for d := range dim {
						s += float64(qf[i*dim+d]) * float64(kf[j*dim+d])
					}
					p := math.Exp(s / 8)
					total += p
					for d := range dim {
						want[d] += p * float64(vf[j*dim+d])
					}
				}
				if e := math.Abs(float64(lse[i]) - math.Log(total)); e > 4e-6 {
					t.Fatalf("%d rows, %d keys, row %d: LSE %v, want %v", rows, keys, i, lse[i], math.Log(total))
				}
				for d := range want {
					// a weight is off by at most 2⁻⁹ of itself
					if e := math.Abs(float64(out[i*dim+d]) - want[d]/total); e > 0x1p-8 {
						t.Fatalf("%d rows, %d keys, row %d: output %d is %v, want %v", rows, keys, i, d, out[i*dim+d], want[d]/total)
					}
				}
			}
		}
	})
}
