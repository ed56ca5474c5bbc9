package bf16

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// each runs f for every tier this machine has, Go too.
func each(t *testing.T, f func(t *testing.T)) {
	for _, tier := range Tiers() {
		t.Run(tier.String(), func(t *testing.T) {
			before, err := Use(tier)
			if err != nil {
				t.Fatal(err)
			}
			defer Use(before)
			f(t)
		})
	}
}

// eachFast is each without Go, for comparisons with it.
func eachFast(t *testing.T, f func(t *testing.T)) {
	if len(Tiers()) == 1 {
		t.Skip("this machine has Go alone")
	}
	each(t, func(t *testing.T) {
		if active != Go {
			f(t)
		}
	})
}

// withGo computes with the Go tier.
func withGo(f func()) {
	before, _ := Use(Go)
	defer Use(before)
	f()
}

// floats are n numbers, as BF16 holds them if narrow.
func floats(r *rand.Rand, n int, narrow bool) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
		if narrow {
			x[i] = tensor.BF16ToF32(tensor.F32ToBF16(x[i]))
		}
	}
	return x
}

func words(x []float32) []uint16 {
	w := make([]uint16, len(x))
	for i := range x {
		w[i] = tensor.F32ToBF16(x[i])
	}
	return w
}

// sprinkle puts zeros, subnormals, infinities, NaNs with payloads in the low
// half only, and numbers near the largest among x.
func sprinkle(r *rand.Rand, x []float32) {
	special := []uint32{0, 0x80000000, 1, 0x007fffff, 0x00800000, 0x7f800000, 0xff800000, 0x7f800001, 0x7fc00000, 0xffffffff, 0x7f7fffff, 0x7f7f8000, 0xff7fffff, 0x3f808000, 0x3f818000}
	for range len(x) / 8 {
		x[r.IntN(len(x))] = math.Float32frombits(special[r.IntN(len(special))])
	}
}

// same compares packed words: what is below the smallest normal may be 0, and NaNs are alike.
func same(a, b uint16) bool {
	x, y := tensor.BF16ToF32(a), tensor.BF16ToF32(b)
	tiny := func(x float32) bool { return x >= -0x1p-126 && x <= 0x1p-126 }
	return a == b || x != x && y != y || tiny(x) && tiny(y)
}

func TestPackingIsThatOfGo(t *testing.T) {
	eachFast(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		for dim := 32; dim <= MaxDim; dim += 32 {
			for _, wild := range []bool{false, true} {
				ld := dim + r.IntN(3)*16
				x, q := floats(r, Keys*ld, false), floats(r, dim*Lanes, false)
				if wild {
					sprinkle(r, x)
					sprinkle(r, q)
				}
				w := words(x)
				src := slices.Clone(w)
				for name, f := range map[string]func(dst []uint16) bool{
					"key":      func(dst []uint16) bool { return PackKey(dst, w, ld, dim) },
					"value":    func(dst []uint16) bool { return PackValue(dst, w, ld, dim) },
					"key f32":  func(dst []uint16) bool { PackKeyF32(dst, x, ld, dim, 1); return true },
					"key 3":    func(dst []uint16) bool { PackKeyF32(dst, x, ld, dim, Exact); return true },
					"queries":  func(dst []uint16) bool { PackPairs(dst, q, dim, 1); return true },
					"queries3": func(dst []uint16) bool { PackPairs(dst, q, dim, Exact); return true },
				} {
					got, want := make([]uint16, 3*Keys*dim+8), make([]uint16, 3*Keys*dim+8)
					for i := range got {
						got[i], want[i] = 0x1234, 0x1234
					}
					a, b := f(got), false
					withGo(func() { b = f(want) })
					if a != b {
						t.Fatalf("%s, dim %d: finite is %v, want %v", name, dim, a, b)
					}
					for i := range got {
						if !same(got[i], want[i]) {
							t.Fatalf("%s, dim %d: word %d is %#x, want %#x", name, dim, i, got[i], want[i])
						}
					}
				}
				if !slices.Equal(src, w) {
					t.Fatal("the source has changed")
				}
			}
		}
	})
}

// One element that is not finite is found wherever it stands.
func TestFiniteSeesEveryElement(t *testing.T) {
	each(t, func(t *testing.T) {
		const dim = 96
		x, dst := make([]uint16, Keys*dim), make([]uint16, Keys*dim)
		for i := range x {
			for _, bad := range []uint16{0x7f80, 0xff80, 0x7fff, 0xff81} {
				x[i] = bad
				if PackKey(dst, x, dim, dim) || PackValue(dst, x, dim, dim) {
					t.Fatalf("%#x at %d is taken for finite", bad, i)
				}
			}
			x[i] = 0xff7f
			if !PackKey(dst, x, dim, dim) || !PackValue(dst, x, dim, dim) {
				t.Fatalf("the largest number at %d is taken for infinite", i)
			}
		}
	})
}

// The parts of a number add up to it.
func TestPartsAreExact(t *testing.T) {
	each(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 4))
		x := floats(r, 64*Lanes, false)
		for i := range x {
			x[i] = float32(math.Ldexp(float64(x[i]), r.IntN(160)-80))
		}
		x[5] = math.MaxFloat32
		dst := make([]uint16, 3*len(x))
		PackPairs(dst, x, 64, Exact)
		for y := range 64 {
			for i := range Lanes {
				sum := 0.0
				for p := range 3 {
					sum += float64(tensor.BF16ToF32(dst[p*len(x)+atB(y, i)]))
				}
				if sum != float64(x[y*Lanes+i]) {
					t.Fatalf("parts of %v add up to %v", x[y*Lanes+i], sum)
				}
			}
		}
	})
}

// A product is off by no more than a float32 sum in some order may be.
func TestMultiply(t *testing.T) {
	each(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 6))
		for range 60 {
			dim := 32 * (1 + r.IntN(16))
			parts := [][2]int{{1, 1}, {1, Exact}, {Exact, Exact}}[r.IntN(3)]
			products := map[[2]int]int{{1, 1}: 1, {1, Exact}: 3, {Exact, Exact}: 6}[parts]
			keep := r.IntN(2) == 0
			k, q := floats(r, Keys*dim, parts[0] == 1), floats(r, dim*Lanes, parts[1] == 1)
			a, b := make([]uint16, parts[0]*Keys*dim), make([]uint16, parts[1]*Lanes*dim)
			PackKeyF32(a, k, dim, dim, parts[0])
			PackPairs(b, q, dim, parts[1])
			c := floats(r, Keys*Lanes+16, false)
			before := slices.Clone(c)
			Multiply(c, a, b, Keys, dim, parts[0], parts[1], keep)
			for j := range Keys {
				for i := range Lanes {
					want, size := 0.0, 0.0
					if keep {
						want = float64(before[j*Lanes+i])
						size = math.Abs(want)
					}
					for d := range dim {
						x := float64(k[j*dim+d]) * float64(q[d*Lanes+i])
						want, size = want+x, size+math.Abs(x)
					}
					bound := size * 0x1p-24 * (4 + math.Sqrt(float64(products*dim)))
					if err := math.Abs(float64(c[j*Lanes+i]) - want); !(err <= bound) {
						t.Fatalf("dim %d, parts %v, keep %v: c[%d,%d] is %v, want %v, error %.3g, bound %.3g", dim, parts, keep, j, i, c[j*Lanes+i], want, err, bound)
					}
				}
			}
			if !slices.Equal(c[Keys*Lanes:], before[Keys*Lanes:]) {
				t.Fatal("written past the end of c")
			}
		}
	})
}

// problem is a tile and strips with random masks.
type problem struct {
	Tile
	strips int
}

func newProblem(r *rand.Rand, dim, vdim, strips, kparts, qparts int, masked bool) *problem {
	p := &problem{strips: strips}
	p.HeadDim, p.ValueDim, p.KeyParts, p.QueryParts = dim, vdim, kparts, qparts
	p.Key, p.Value, p.Query = Uint16s(kparts*Keys*dim), Uint16s(Keys*vdim), Uint16s(strips*qparts*dim*Lanes)
	PackKeyF32(p.Key, floats(r, Keys*dim, kparts == 1), dim, dim, kparts)
	PackValue(p.Value, words(floats(r, Keys*vdim, true)), vdim, vdim)
	n := qparts * dim * Lanes
	for x := range strips {
		PackPairs(p.Query[x*n:][:n], floats(r, dim*Lanes, qparts == 1), dim, qparts)
	}
	rows := strips * Lanes
	p.Scale, p.M, p.L, p.Out = make([]float32, rows), make([]float32, rows), make([]float32, rows), Float32s(rows*vdim)
	for i := range p.Scale {
		p.Scale[i] = kernel.Log2E / float32(math.Sqrt(float64(dim))) * float32(1+9*r.Float64())
		p.M[i] = kernel.MaxStart
	}
	if masked {
		p.Visible = make([]uint32, strips*Keys)
		for i := range p.Visible {
			p.Visible[i] = r.Uint32()
			if r.IntN(4) == 0 {
				p.Visible[i] = 0
			}
		}
	}
	return p
}

func (p *problem) clone() *problem {
	q := *p
	q.M, q.L, q.Out = slices.Clone(p.M), slices.Clone(p.L), slices.Clone(p.Out)
	return &q
}

// compare holds a state against that of the Go tier.
func (p *problem) compare(want *problem, tolerance float64) error {
	for i := range p.M {
		if math.Abs(float64(p.M[i]-want.M[i])) > tolerance*math.Abs(float64(want.M[i])) {
			// near m + Slack one may move and the other not
			return fmt.Errorf("m[%d] is %v, want %v", i, p.M[i], want.M[i])
		}
		if e := math.Abs(float64(p.L[i] - want.L[i])); !(e <= 16*tolerance*float64(want.L[i])) {
			return fmt.Errorf("l[%d] is %v, want %v", i, p.L[i], want.L[i])
		}
	}
	// where a weight is rounded to the other neighbour, a whole row is off
	off := 0
	for row := range p.M {
		x, i, worst := row/Lanes, row%Lanes, 0.0
		for d := range p.ValueDim {
			at := (x*p.ValueDim+d)*Lanes + i
			worst = max(worst, math.Abs(float64(p.Out[at]-want.Out[at]))/float64(want.L[row]))
			if p.Out[at] != p.Out[at] {
				return fmt.Errorf("out[%d] is NaN", at)
			}
		}
		if worst > 0x1p-5 {
			return fmt.Errorf("row %d is off by %v of l", row, worst)
		}
		if worst > 32*tolerance {
			off++
		}
	}
	if off > len(p.M)/4 {
		return fmt.Errorf("%d of %d rows are off by more than sums may be", off, len(p.M))
	}
	return nil
}

func TestAttendIsThatOfGo(t *testing.T) {
	eachFast(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(7, 8))
		sc := NewScratch()
		for n := range 40 {
			dim, vdim, strips := 32*(1+r.IntN(8)), 32*(1+r.IntN(8)), 1+r.IntN(3)
			if n == 0 {
				dim, vdim, strips = MaxDim, MaxDim, 1
			}
			parts := [][2]int{{1, 1}, {1, Exact}, {Exact, Exact}}[r.IntN(3)]
			got := newProblem(r, dim, vdim, strips, parts[0], parts[1], n%2 == 0)
			want := got.clone()
			for tile := range 3 {
				got.Attend(sc, strips)
				withGo(func() { want.Attend(sc, strips) })
				if err := got.compare(want, 1e-5); err != nil {
					t.Fatalf("dims %d, %d, parts %v, tile %d: %v", dim, vdim, parts, tile, err)
				}
				next := newProblem(r, dim, vdim, strips, parts[0], parts[1], n%2 == 0)
				for _, p := range []*problem{got, want} {
					p.Key, p.Value, p.Visible = next.Key, next.Value, next.Visible
				}
			}
		}
	})
}
