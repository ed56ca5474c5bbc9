package bf16

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/kernel"
)

// rowOf are the m, l and outputs of a row.
func (p *problem) rowOf(row int) []uint32 {
	x, i := row/Lanes, row%Lanes
	bits := []uint32{math.Float32bits(p.M[row]), math.Float32bits(p.L[row])}
	for d := range p.ValueDim {
		bits = append(bits, math.Float32bits(p.Out[(x*p.ValueDim+d)*Lanes+i]))
	}
	return bits
}

// A NaN or an infinity in a key reaches the rows that see it, and changes no
// bit of another. The same goes for a query.
func TestNotFiniteStaysInItsRows(t *testing.T) {
	each(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(21, 22))
		sc := NewScratch()
		for n := range 30 {
			const dim, strips = 64, 2
			clean := newProblem(r, dim, 32, strips, 1, 1, true)
			bad := clean.clone()
			bad.Key, bad.Query = slices.Clone(clean.Key), slices.Clone(clean.Query)
			j, row := r.IntN(Keys), -1
			word := []uint16{0x7fc0, 0x7f80, 0xff80}[n%3]
			if n%2 == 0 {
				bad.Key[atA(j, r.IntN(dim), dim)] = word
			} else {
				row = r.IntN(strips * Lanes)
				bad.Query[row/Lanes*dim*Lanes+atB(r.IntN(dim), row%Lanes)] = word
			}
			for range 2 {
				clean.Attend(sc, strips)
				bad.Attend(sc, strips)
			}
			for i := range strips * Lanes {
				sees := clean.Visible[i/Lanes*Keys+j]>>(i%Lanes)&1 != 0
				reached := i == row || row < 0 && sees
				if !reached && !slices.Equal(clean.rowOf(i), bad.rowOf(i)) {
					t.Fatalf("%#x in key %d (or query of row %d): row %d, which sees the key: %v, has changed", word, j, row, i, sees)
				}
				if reached && word == 0x7fc0 && bad.L[i] == bad.L[i] {
					t.Fatalf("a NaN did not reach row %d", i)
				}
			}
		}
	})
}

// A row that sees no key, or only scores below −10³⁰, stays as it was.
func TestRowsWithoutKeysStay(t *testing.T) {
	each(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(23, 24))
		const strips = 3
		p := newProblem(r, 64, 64, strips, 1, 1, true)
		for i := range p.Query { // all products positive
			p.Query[i] &= 0x7fff
		}
		for i := range p.Key {
			p.Key[i] &= 0x7fff
		}
		for j := range Keys {
			p.Visible[j] &^= 1 << 5
			p.Visible[2*Keys+j] = 0
		}
		p.Scale[9] = -math.MaxFloat32
		p.Attend(NewScratch(), strips)
		for i := range strips * Lanes {
			empty := i == 5 || i == 9 || i >= 2*Lanes
			zero := !slices.ContainsFunc(p.rowOf(i)[2:], func(b uint32) bool { return b<<1 != 0 })
			if got := p.M[i] == kernel.MaxStart && p.L[i] == 0 && zero; got != empty {
				t.Errorf("row %d: m %v, l %v, outputs zero: %v", i, p.M[i], p.L[i], zero)
			}
		}
	})
}

// Strips are independent: one call for all gives the bits of a call for each.
func TestStripsAreIndependent(t *testing.T) {
	each(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(25, 26))
		sc := NewScratch()
		for n := range 6 {
			const strips, dim, vdim = 5, 96, 64
			parts := 1 + n%2*2
			all := newProblem(r, dim, vdim, strips, 1, parts, n%3 == 0)
			one := all.clone()
			all.Attend(sc, strips)
			for x := range strips {
				p := one.Tile
				p.Query, p.Scale, p.M, p.L, p.Out = p.Query[x*parts*dim*Lanes:], p.Scale[x*Lanes:], p.M[x*Lanes:], p.L[x*Lanes:], p.Out[x*vdim*Lanes:]
				if p.Visible != nil {
					p.Visible = p.Visible[x*Keys:]
				}
				p.Attend(sc, 1)
			}
			for i := range strips * Lanes {
				if !slices.Equal(all.rowOf(i), one.rowOf(i)) {
					t.Fatalf("row %d depends on the strips beside it", i)
				}
			}
		}
	})
}

// On a machine with AMX everything is worth taking, on one without a tier
// nothing is.
func TestSupported(t *testing.T) {
	each(t, func(t *testing.T) {
		for _, parts := range [][2]int{{1, 1}, {1, Exact}, {Exact, Exact}} {
			got := Supported(parts[0], parts[1])
			if active == AMX && !got || active == Go && got || active == VDPBF16PS && got && parts[1] != 1 {
				t.Errorf("parts %v: %v", parts, got)
			}
		}
	})
}

func TestUseRefusesWhatDoesNotRun(t *testing.T) {
	if _, err := Use(AMX + 1); err == nil {
		t.Error("tier 3 is accepted")
	}
	if Go.String() != "go" || Tier(9).String() != "Tier(9)" {
		t.Error("names of tiers")
	}
	for dim, want := range map[int]bool{0: false, 16: false, 32: true, 48: false, 512: true, 544: false, -32: false} {
		if Fits(dim) != want {
			t.Errorf("Fits(%d) is %v", dim, !want)
		}
	}
}

// Key j has the score −2j in every row, and the value that gives weight j to
// feature j: weights down to 2^−126, and nothing from there on.
func TestWeights(t *testing.T) {
	each(t, func(t *testing.T) {
		for shift := range 3 {
			p := newProblem(rand.New(rand.NewPCG(1, 1)), 32, Keys, 1, 1, 1, false)
			k, v, q := make([]float32, Keys*32), make([]float32, Keys*Keys), make([]float32, 32*Lanes)
			for j := range Keys {
				k[j*32], v[j*Keys+j] = float32(-2*j), 1
				if j > 0 {
					k[j*32] -= float32(shift)
				}
			}
			for i := range Lanes {
				q[i], p.Scale[i] = 1, 1
			}
			PackKey(p.Key, words(k), 32, 32)
			PackValue(p.Value, words(v), Keys, Keys)
			PackPairs(p.Query, q, 32, 1)
			p.Attend(NewScratch(), 1)
			for j := range Keys {
				for i := range Lanes {
					want := math.Exp2(float64(k[j*32]))
					if want < 0x1p-126 {
						want = 0
					}
					if got := float64(p.Out[j*Lanes+i]); math.Abs(got-want) > want*0x1p-9 && want > 0x1p-125 || want == 0 && got != 0 {
						t.Fatalf("2^%v is %v, want %v", k[j*32], got, want)
					}
				}
			}
		}
	})
}

// A row of one key above and 63 others alike: l is good to float32 wherever
// the others are.
func TestDenominator(t *testing.T) {
	each(t, func(t *testing.T) {
		for n := range 400 {
			p := newProblem(rand.New(rand.NewPCG(1, 1)), 32, 32, 1, 1, 1, false)
			k, q := make([]float32, Keys*32), make([]float32, 32*Lanes)
			for j := range Keys {
				k[j*32] = -1
			}
			k[(Keys-1)*32] = 0 // last, so that it rounds the others off once
			clear(p.Value)
			for i := range Lanes {
				q[i], p.Scale[i] = 1, float32(n*Lanes+i)/512
			}
			PackKey(p.Key, words(k), 32, 32)
			PackPairs(p.Query, q, 32, 1)
			p.Attend(NewScratch(), 1)
			for i := range Lanes {
				want := 1 + 63*math.Exp2(-float64(p.Scale[i]))
				if e := math.Abs(float64(p.L[i]) - want); e > 0x1p-19*want || p.M[i] != 0 {
					t.Fatalf("1 + 63·2^−%v is %v, want %v; m is %v", p.Scale[i], p.L[i], want, p.M[i])
				}
			}
		}
	})
}
