package bf16

import (
	"fmt"
	"strings"
)

// general numbers the general registers as instructions do.
var general = map[string]int{
	"AX": 0, "CX": 1, "DX": 2, "BX": 3, "SP": 4, "BP": 5, "SI": 6, "DI": 7,
	"R8": 8, "R9": 9, "R10": 10, "R11": 11, "R12": 12, "R13": 13,
}

// code writes the bytes of an instruction, with its mnemonic in Intel's order.
func (g *gen) code(b []byte, format string, a ...any) {
	var s []string
	for _, x := range b {
		s = append(s, fmt.Sprintf("BYTE $0x%02x", x))
	}
	g.p("%s // %s", strings.Join(s, "; "), fmt.Sprintf(format, a...))
}

// vex is the three-byte prefix of a 128-bit instruction of map 0F38, W0
// (Intel SDM volume 2, 2.3.5): pp is the prefix it stands for (0 none, 1 66,
// 2 F3, 3 F2), v the register that is in no other field.
func vex(pp, r, x, b, v int) []byte {
	return []byte{0xc4, byte(^r>>3&1<<7 | ^x>>3&1<<6 | ^b>>3&1<<5 | 2), byte(^v&15<<3 | pp)}
}

// at is the ModRM, SIB and displacement of base + disp, with an index register
// or without one (index < 0). scale divides the displacement where it fits into
// a byte; 1 for VEX.
func at(reg, base, index, disp, scale int) []byte {
	mod, rm := 2, base&7
	if disp%scale == 0 && disp/scale == int(int8(disp/scale)) {
		mod, disp = 1, disp/scale
	}
	if disp == 0 && base&7 != 5 {
		mod = 0
	}
	var sib []byte
	if index >= 0 || base&7 == 4 {
		x := 4
		if index >= 0 {
			x = index & 7
		}
		rm, sib = 4, []byte{byte(x<<3 | base&7)}
	}
	b := append([]byte{byte(mod<<6 | reg&7<<3 | rm)}, sib...)
	switch mod {
	case 1:
		b = append(b, byte(disp))
	case 2:
		b = append(b, byte(disp), byte(disp>>8), byte(disp>>16), byte(disp>>24))
	}
	return b
}

func (g *gen) ldtilecfg(base string) {
	r := general[base]
	g.code(append(append(vex(0, 0, 0, r, 0), 0x49), at(0, r, -1, 0, 1)...), "LDTILECFG [%s]", base)
}

func (g *gen) tilerelease() { g.code(append(vex(0, 0, 0, 0, 0), 0x49, 0xc0), "TILERELEASE") }

func (g *gen) tilezero(t int) {
	g.code(append(vex(3, 0, 0, 0, 0), 0x49, byte(0xc0|t<<3)), "TILEZERO tmm%d", t)
}

// tileload loads a tile whose rows begin stride bytes apart, stride a register.
func (g *gen) tileload(t, disp int, base, stride string) {
	r, s := general[base], general[stride]
	g.code(append(append(vex(3, 0, s, r, 0), 0x4b), at(t, r, s, disp, 1)...), "TILELOADD tmm%d, [%s+%s*1+%d]", t, base, stride, disp)
}

func (g *gen) tilestore(t, disp int, base, stride string) {
	r, s := general[base], general[stride]
	g.code(append(append(vex(2, 0, s, r, 0), 0x4b), at(t, r, s, disp, 1)...), "TILESTORED [%s+%s*1+%d], tmm%d", base, stride, disp, t)
}

// tdp adds the product of tiles a and b to tile c.
func (g *gen) tdp(c, a, b int) {
	g.code(append(vex(2, 0, 0, 0, b), 0x5c, byte(0xc0|c<<3|a)), "TDPBF16PS tmm%d, tmm%d, tmm%d", c, a, b)
}

// evex is the prefix of a 512-bit instruction of map 0F38, W0, without a mask
// (Intel SDM volume 2, 2.7.1). x is the high bit of the register or index in
// ModRM, broadcast whether its 32 bits in memory go to all lanes.
func evex(pp, reg, x, b, v int, broadcast bool) []byte {
	p2 := byte(2<<5 | ^v>>4&1<<3)
	if broadcast {
		p2 |= 1 << 4
	}
	return []byte{0x62, byte(^reg>>3&1<<7 | ^x&1<<6 | ^b>>3&1<<5 | ^reg>>4&1<<4 | 2), byte(^v&15<<3 | 4 | pp), p2}
}

// dpBroadcast adds, in each lane of zc, the product of its pair in za with the
// pair at disp(base).
func (g *gen) dpBroadcast(c, a, disp int, base string) {
	r := general[base]
	g.code(append(append(evex(2, c, 0, r, a, true), 0x52), at(c, r, -1, disp, 4)...), "VDPBF16PS zmm%d, zmm%d, [%s+%d]{1to16}", c, a, base, disp)
}

// cvt2 rounds the lanes of zlow and zhigh to BF16: 16 words of one, then 16 of
// the other.
func (g *gen) cvt2(dst, high, low int) {
	g.code(append(evex(3, dst, low>>4, low, high, false), 0x72, byte(0xc0|dst&7<<3|low&7)), "VCVTNE2PS2BF16 zmm%d, zmm%d, zmm%d", dst, high, low)
}
