//go:build amd64 && !purego

package bf16

import (
	"encoding/binary"

	"golang.org/x/sys/cpu"
)

//go:noescape
func productAMX(a *productArgs)

//go:noescape
func productVDP(a *productArgs)

//go:noescape
func attendAMX(a *attendArgs)

//go:noescape
func attendVDP(a *attendArgs)

//go:noescape
func packKeyAVX512(a *packArgs)

//go:noescape
func packKeyF32AVX512(a *packArgs)

//go:noescape
func packValueAVX512(a *packArgs)

//go:noescape
func packPairsAVX512(a *packArgs)

func cpuid(leaf, subleaf uint32) (eax, ebx, ecx, edx uint32)

func product(a *productArgs) {
	if active == AMX {
		productAMX(a)
	} else {
		productVDP(a)
	}
}

func attend(a *attendArgs) {
	if active == AMX {
		attendAMX(a)
	} else {
		attendVDP(a)
	}
}

func pack(what packing, a *packArgs) {
	switch what {
	case packKey:
		packKeyAVX512(a)
	case packKeyF32:
		packKeyF32AVX512(a)
	case packValue:
		packValueAVX512(a)
	case packPairs:
		packPairsAVX512(a)
	}
}

// runs reports whether this machine can run a tier.
func runs(t Tier) bool {
	x := &cpu.X86
	avx512 := x.HasAVX512F && x.HasAVX512BW && x.HasAVX512DQ && x.HasAVX512VL && x.HasAVX512BF16
	switch t {
	case Go:
		return true
	case VDPBF16PS:
		return avx512
	case AMX:
		return avx512 && x.HasAMXTile && x.HasAMXBF16 && tilesAllowed()
	}
	return false
}

// doubleRate says that VDPBF16PS has twice the rate of float32: on AMD's CPUs.
var doubleRate = vendor() == "AuthenticAMD"

func vendor() string {
	_, b, c, d := cpuid(0, 0)
	var name []byte
	for _, r := range []uint32{b, d, c} {
		name = binary.LittleEndian.AppendUint32(name, r)
	}
	return string(name)
}
