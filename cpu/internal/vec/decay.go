package vec

import "github.com/longctx/longctx/kernel"

// Decays are what a scan with gates of channels multiplies tokens by, rule 24 of
// package kernel. Row d of g has the sums of gates before token 0 to 64. Blocks of
// 2·h tokens have their boundary m in the middle: tokens before it are keys, which
// decay up to it, others queries, which decay from it on. For the tokens r of
// whole registers up to n
//
//	e[d,r] = E(g[d,m] − g[d,r+1]);        w[d,r] = k[d,r]·e[d,r]      r before m
//	e[d,r] = E(g[d,r+1−shift] − g[d,m]);  w[d,r] = q[d,r]·e[d,r]      others
//
// the differences rounded from binary64. With h = 64 all are keys, which decay to
// the end; with h = 0 all are queries, which decay from the start. What tokens after
// n get is of no use, as the sums of theirs may be. w may be q or k.
func Decays(p kernel.Policy, w, e, q, k []float32, g []float64, rows, n, h, shift int) {
	if rows <= 0 || n <= 0 {
		return
	}
	n = (n + 15) &^ 15
	size := (rows-1)*Stride + n
	w, e, q, k, g = w[:size], e[:size], q[:size], k[:size], g[:rows*gateRow]
	if decays(w, e, q, k, g, rows, n, h, shift) {
		return
	}
	for d := range rows {
		g, at := g[d*gateRow:][:gateRow], d*Stride
		for r := range n {
			m := r&^(2*h-1) + h
			var x float32
			y := k[at+r]
			if r < m {
				x = float32(g[m] - g[r+1])
			} else {
				x, y = float32(g[r+1-shift]-g[m]), q[at+r]
			}
			x = Exp2(p, x)
			e[at+r], w[at+r] = x, y*x
		}
	}
}

// Gates sets row d of g to the sums of the gates x[d,r] of n tokens in powers of
// two, rule 24 of package kernel: g[d,0] = 0, g[d,r+1] = g[d,r] +
// min(max(x[d,r]·Log2E, −128), 0), and the last one of the row, g[d,64], to g[d,n].
// x is used up.
func Gates(g []float64, x []float32, rows, n int) {
	for d := range rows {
		x := x[d*Stride:][:n]
		if n > 8 && limitGates(x) {
			continue
		}
		for r, y := range x {
			x[r] = min(max(float32(y*kernel.Log2E), GateFloor), 0)
		}
	}
	d := 0
	for ; d+4 <= rows; d += 4 { // each sum waits for the one before: four at a time
		x0, x1, x2, x3 := x[d*Stride:][:n], x[(d+1)*Stride:][:n], x[(d+2)*Stride:][:n], x[(d+3)*Stride:][:n]
		g0, g1, g2, g3 := g[d*gateRow:][:n+1], g[(d+1)*gateRow:][:n+1], g[(d+2)*gateRow:][:n+1], g[(d+3)*gateRow:][:n+1]
		var s0, s1, s2, s3 float64
		for r := range n {
			g0[r], g1[r], g2[r], g3[r] = s0, s1, s2, s3
			s0 += float64(x0[r])
			s1 += float64(x1[r])
			s2 += float64(x2[r])
			s3 += float64(x3[r])
		}
		g0[n], g1[n], g2[n], g3[n] = s0, s1, s2, s3
	}
	for ; d < rows; d++ {
		sum, g := 0.0, g[d*gateRow:][:n+1]
		for r, y := range x[d*Stride:][:n] {
			g[r] = sum
			sum += float64(y)
		}
		g[n] = sum
	}
	for d := range rows {
		g := g[d*gateRow:][:gateRow]
		g[Stride] = g[n]
	}
}

// gateRow is the length of a row of sums of gates: before each token, and the last.
const gateRow = Stride + 1

// GateFloor is the least power of two of a gate: its factor is 0.
const GateFloor = -128

// Multiply sets y = a·b. y may be either.
func Multiply(y, a, b []float32) {
	a, b = a[:len(y)], b[:len(y)]
	if len(y) == 0 || multiply(y, a, b) {
		return
	}
	for i, x := range a {
		y[i] = x * b[i]
	}
}
