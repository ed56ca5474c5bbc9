package bf16

import (
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// guarded copies x to where it ends (or, at the start, begins) at a page that
// must not be touched.
func guarded[T any](t *testing.T, x []T, start bool) []T {
	t.Helper()
	if len(x) == 0 {
		return nil
	}
	page, size := os.Getpagesize(), len(x)*int(unsafe.Sizeof(x[0]))
	inner := (size + page - 1) / page * page
	all, err := unix.Mmap(-1, 0, inner+2*page, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(all) })
	if err := unix.Mprotect(all[page:page+inner], unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Fatal(err)
	}
	at := page
	if !start {
		at += inner - size
	}
	y := unsafe.Slice((*T)(unsafe.Pointer(&all[at])), len(x))
	copy(y, x)
	return y
}

// Nothing beyond an operand is read or written.
func TestOperandsBetweenGuardPages(t *testing.T) {
	each(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(11, 12))
		for n := range 24 {
			start := n%2 == 0
			dim, vdim, strips := 32*(1+r.IntN(6)), 32*(1+r.IntN(6)), 1+r.IntN(3)
			ld := dim + 16*r.IntN(2)
			rows := guarded(t, floats(r, (Keys-1)*ld+dim, true), start)
			w := guarded(t, words(rows), start)
			PackKey(guarded(t, make([]uint16, Keys*dim), start), w, ld, dim)
			PackValue(guarded(t, make([]uint16, Keys*dim), start), w, ld, dim)
			pairs := guarded(t, floats(r, dim*Lanes, true), start)
			for _, parts := range []int{1, Exact} {
				PackKeyF32(guarded(t, make([]uint16, parts*Keys*dim), start), rows, ld, dim, parts)
				PackPairs(guarded(t, make([]uint16, parts*Lanes*dim), start), pairs, dim, parts)
			}
			parts := [][2]int{{1, 1}, {1, Exact}, {Exact, Exact}}[n%3]
			p := newProblem(r, dim, vdim, strips, parts[0], parts[1], n%4 > 1)
			want := p.clone()
			c := make([]float32, Keys*Lanes)
			Multiply(c, p.Key, p.Query, Keys, dim, parts[0], parts[1], true)
			want.Attend(NewScratch(), strips)
			p.Key, p.Value, p.Query = guarded(t, p.Key, start), guarded(t, p.Value, start), guarded(t, p.Query, start)
			p.Scale, p.M, p.L, p.Out = guarded(t, p.Scale, start), guarded(t, p.M, start), guarded(t, p.L, start), guarded(t, p.Out, start)
			p.Visible = guarded(t, p.Visible, start)
			d := guarded(t, make([]float32, Keys*Lanes), start)
			Multiply(d, p.Key, p.Query, Keys, dim, parts[0], parts[1], true)
			p.Attend(&Scratch{guarded(t, make([]float32, Keys*Lanes), start), guarded(t, make([]uint16, Keys*Lanes), start)}, strips)
			if !slices.Equal(c, d) || !slices.Equal(p.Out, want.Out) || !slices.Equal(p.L, want.L) || !slices.Equal(p.M, want.M) {
				t.Fatal("results depend on where operands lie")
			}
		}
	})
}
