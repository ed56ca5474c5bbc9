package arm64

import "fmt"

// inst is an instruction that Go's assembler does not have: its encoding, and
// its text as Arm writes it (Arm Architecture Reference Manual, DDI 0487, C7.2).
type inst struct {
	word uint32
	text string
}

func three(op uint32, name, arrangement string, d, n, m vec) inst {
	return inst{op | uint32(m)<<16 | uint32(n)<<5 | uint32(d),
		fmt.Sprintf("%s V%d.%s, V%d.%s, V%d.%s", name, d, arrangement, n, arrangement, m, arrangement)}
}

func two(op uint32, text string, d, n vec) inst {
	return inst{op | uint32(n)<<5 | uint32(d), fmt.Sprintf(text, int(d), int(n))}
}

// d = n op m, for each of four float32.
func fadd(d, n, m vec) inst { return three(0x4e20d400, "FADD", "4S", d, n, m) }
func fsub(d, n, m vec) inst { return three(0x4ea0d400, "FSUB", "4S", d, n, m) }
func fmul(d, n, m vec) inst { return three(0x6e20dc00, "FMUL", "4S", d, n, m) }
func fdiv(d, n, m vec) inst { return three(0x6e20fc00, "FDIV", "4S", d, n, m) }

// fmax is NaN where either is, and takes +0 for greater than −0.
func fmax(d, n, m vec) inst { return three(0x4e20f400, "FMAX", "4S", d, n, m) }

// fcmgt sets all bits of a lane where n > m, which is false for NaN.
func fcmgt(d, n, m vec) inst { return three(0x6ea0e400, "FCMGT", "4S", d, n, m) }

// fcmeq sets all bits of a lane where n = m, which is false for NaN.
func fcmeq(d, n, m vec) inst { return three(0x4e20e400, "FCMEQ", "4S", d, n, m) }

// fcmeq0 sets all bits of a lane where n is 0.
func fcmeq0(d, n vec) inst { return two(0x4ea0d800, "FCMEQ V%d.4S, V%d.4S, #0.0", d, n) }

// fmla adds n times element i of m to d, with one rounding.
func fmla(d, n, m vec, i int) inst {
	return inst{0x4f801000 | uint32(i&1)<<21 | uint32(m)<<16 | uint32(i>>1)<<11 | uint32(n)<<5 | uint32(d),
		fmt.Sprintf("FMLA V%d.4S, V%d.4S, V%d.S[%d]", d, n, m, i)}
}

// bic is n and not m.
func bic(d, n, m vec) inst { return three(0x4e601c00, "BIC", "16B", d, n, m) }

// ucvtf converts unsigned 32-bit integers.
func ucvtf(d, n vec) inst { return two(0x6e21d800, "UCVTF V%d.4S, V%d.4S", d, n) }

// umaxv is the greatest of four lanes as unsigned integers.
func umaxv(d, n vec) inst { return two(0x6eb0a800, "UMAXV S%d, V%d.4S", d, n) }

// fcvtl widens the lower four of eight binary16, fcvtl2 the upper four.
func fcvtl(d, n vec) inst  { return two(0x0e217800, "FCVTL V%d.4S, V%d.4H", d, n) }
func fcvtl2(d, n vec) inst { return two(0x4e217800, "FCVTL2 V%d.4S, V%d.8H", d, n) }

// fcvtn rounds four float32 to binary16, into the lower half of d with the
// upper set to 0, fcvtn2 into the upper half.
func fcvtn(d, n vec) inst  { return two(0x0e216800, "FCVTN V%d.4H, V%d.4S", d, n) }
func fcvtn2(d, n vec) inst { return two(0x4e216800, "FCVTN2 V%d.8H, V%d.4S", d, n) }

// sshll7 makes the lower eight bytes halves, their signs extended, times 2⁷;
// sshll7x2 the upper eight.
func sshll7(d, n vec) inst   { return two(0x0f0fa400, "SSHLL V%d.8H, V%d.8B, #7", d, n) }
func sshll7x2(d, n vec) inst { return two(0x4f0fa400, "SSHLL2 V%d.8H, V%d.16B, #7", d, n) }

// shll puts the lower four of eight 16-bit elements into the upper halves of
// 32-bit ones, which widens bfloat16; shll2 the upper four.
func shll(d, n vec) inst  { return two(0x2e613800, "SHLL V%d.4S, V%d.4H, #16", d, n) }
func shll2(d, n vec) inst { return two(0x6e613800, "SHLL2 V%d.4S, V%d.8H, #16", d, n) }

// ldr loads 16 bytes from base + index, numbers of general registers.
func ldr(d vec, base, index int) inst {
	return inst{0x3ce06800 | uint32(index)<<16 | uint32(base)<<5 | uint32(d),
		fmt.Sprintf("LDR Q%d, [X%d, X%d]", d, base, index)}
}
