// Runs the kernels of scan.cuh on the simulator, on small problems, against rule 24
// of package kernel one pair of tokens at a time. It ends as harness.cpp does.
#include "scan.cuh"

#include "harness.h"

KERNEL(scan_64, lc_scan_params, product_threads, 2, (scan<false>(p)))
KERNEL(scan_channels_64, lc_scan_params, product_threads, 2, (scan<true>(p)))

namespace {

typedef std::vector<float> Floats;

// Problem is one sequence of two heads that share keys.
struct Problem {
	const char *name;
	int tokens, key_dim, value_dim;
	int gates; // 0: none; 1: of heads; 2: of channels
	bool delta, bonus, kept;
};

const Problem problems[] = {
	{"plain", 140, 20, 70, 0, false, false, true},
	{"delta", 133, 71, 10, 1, true, false, false},
	{"channels", 130, 70, 9, 2, true, false, true},
	{"bonus", 75, 67, 5, 2, false, true, true},
	{"few", 7, 66, 12, 1, true, false, true},
};

const int heads = 2;

struct Run {
	const Problem &q;
	Array<float> query, key, value, gate, beta, bonus, state, out;
	int bad = 0;

	explicit Run(const Problem &p)
		: q(p), query(random(p.tokens * p.key_dim)), key(random(p.tokens * p.key_dim)), value(random(p.tokens * heads * p.value_dim)),
		  gate(random(p.tokens * heads * p.key_dim)), beta(random(p.tokens * heads)), bonus(random(heads * p.key_dim)),
		  state(random(2 * heads * p.key_dim * p.value_dim)), out(Floats(p.tokens * heads * p.value_dim, poison())) {
		for (auto &x : gate.x)
			x = -x * x;
	}

	// power is a gate in powers of two, of token t and channel d.
	float power(int t, int h, int d) const {
		if (q.gates == 0)
			return 0;
		float x = mul_(gate.x[q.gates == 1 ? t * heads + h : (t * heads + h) * q.key_dim + d], log2_e());
		return std::fmin(std::fmax(x, -128.0f), 0.0f);
	}

	// factor is D(i, j) of a channel, of tokens counted from t0.
	float factor(int t0, int h, int d, int i, int j) const {
		double a = 0, b = 0;
		for (int r = 0; r < j; r++) {
			b += power(t0 + r, h, d);
			a += r < i ? power(t0 + r, h, d) : 0;
		}
		return q.gates ? exp2_exact((float)(b - a)) : 1;
	}

	// weight is W(x, r, s) up to j, x the queries or keys.
	float weight(const float *x, float scale, int t0, int h, int r, int s, int j) const {
		int high = 1;
		while ((r ^ s) >> 1 >= high)
			high *= 2;
		int m = r & ~(high - 1);
		float c = 0;
		for (int d = 0; d < q.key_dim; d++) {
			float y = mul_(x[(t0 + r) * q.key_dim + d], scale), k = key.x[(t0 + s) * q.key_dim + d];
			if (q.gates == 2)
				y = mul_(y, factor(t0, h, d, m, j)), k = mul_(k, factor(t0, h, d, s + 1, m));
			c = fma_(y, k, c);
		}
		return q.gates == 1 ? mul_(c, factor(t0, h, 0, s + 1, j)) : c;
	}

	void check(const char *what, int at, int h, int d, float got, float want) {
		if (as_bits(got) != as_bits(want) && !(got != got && want != want) && bad++ == 0)
			printf("%s: %s of %d, head %d, feature %d is %.9g, want %.9g\n", q.name, what, at, h, d, got, want);
	}

	int run() {
		int K = q.key_dim, V = q.value_dim;
		Floats first(state.x.begin() + heads * K * V, state.x.end()); // slot 1; the last state goes to slot 0
		Array<int32_t> starts({0, q.tokens}), from({1}), to({q.kept ? 0 : -1});
		lc_scan_params p = {};
		p.query = tensor(query, K, 0, K, K), p.key = tensor(key, K, 0, K, K), p.value = tensor(value, heads * V, 0, V, V), p.out = tensor(out, heads * V, 0, V, V);
		p.state = tensor(state, heads * K * V, K * V, V, V);
		if (q.gates == 1)
			p.gates = {gate.at(), heads, 1, heads};
		if (q.gates == 2)
			p.gate = tensor(gate, heads * K, 0, K, K);
		if (q.delta)
			p.beta = {beta.at(), heads, 1, heads};
		if (q.bonus)
			p.bonus = {bonus.at(), K, 1, K};
		p.query_start = starts.at(), p.from = from.at(), p.to = to.at();
		p.slices = (V + 63) / 64, p.items = heads * p.slices;
		p.heads = heads, p.group = heads, p.key_dim = K, p.value_dim = V, p.scale = 0.3f;
		Array<float> space(Floats(p.items * K * 64, poison()));
		p.space = space.at();
		int channels = q.gates == 2;
		if (int code = sim_launch(sim_find(channels ? "scan_channels_64" : "scan_64"), {3, 1, 1}, {product_threads, 1, 1}, lc_scan_shared(channels), &p)) {
			printf("%s: error %d: %s\n", q.name, code, sim_error());
			return 2;
		}
		for (int h = 0; h < heads; h++) {
			Floats S(first.begin() + h * K * V, first.begin() + (h + 1) * K * V);
			for (int t0 = 0; t0 < q.tokens; t0 += lc_tile)
				chunk(S, t0, std::min(q.tokens - t0, (int)lc_tile), h);
			for (int k = 0; k < K * V && q.kept; k++)
				check("the state", k / V, h, k % V, state.x[h * K * V + k], S[k]);
		}
		printf("%s: %d elements differ\n", q.name, bad);
		return bad != 0;
	}

	void chunk(Floats &S, int t0, int n, int h) {
		int K = q.key_dim, V = q.value_dim, z = q.bonus;
		std::vector<Floats> u(n, Floats(V));
		auto read = [&](const float *x, float scale, int r, int j, int e) {
			float sum = 0;
			for (int d = 0; d < K; d++)
				sum = fma_(mul_(mul_(x[(t0 + r) * K + d], scale), factor(t0, h, d, 0, j)), S[d * V + e], sum);
			return sum;
		};
		for (int r = 0; r < n; r++) {
			Floats asked(r), stored(r);
			for (int s = 0; s < r; s++) {
				asked[s] = weight(query.x.data(), 0.3f, t0, h, r, s, r + 1 - z);
				stored[s] = q.delta ? weight(key.x.data(), 1, t0, h, r, s, r + 1) : 0;
			}
			float own = 0;
			for (int d = 0; d < K; d++) {
				float x = mul_(query.x[(t0 + r) * K + d], 0.3f);
				own = fma_(q.bonus ? mul_(x, bonus.x[h * K + d]) : x, key.x[(t0 + r) * K + d], own);
			}
			for (int e = 0; e < V; e++) {
				float y = value.x[((t0 + r) * heads + h) * V + e];
				if (q.delta) {
					y = sub_(y, read(key.x.data(), 1, r, r + 1, e));
					for (int s = 0; s < r; s++)
						y = fma_(-stored[s], u[s][e], y);
					y = mul_(y, beta.x[(t0 + r) * heads + h]);
				}
				u[r][e] = y;
				float o = read(query.x.data(), 0.3f, r, r + 1 - z, e);
				for (int s = 0; s < r; s++)
					o = fma_(asked[s], u[s][e], o);
				check("the output", t0 + r, h, e, out.x[((t0 + r) * heads + h) * V + e], add_(fma_(own, y, o), 0.0f));
			}
		}
		for (int d = 0; d < K; d++)
			for (int e = 0; e < V; e++) {
				float s = mul_(S[d * V + e], factor(t0, h, d, 0, n));
				for (int r = 0; r < n; r++)
					s = fma_(mul_(key.x[(t0 + r) * K + d], factor(t0, h, d, r + 1, n)), u[r][e], s);
				S[d * V + e] = s;
			}
	}
};

} // namespace

int main() {
	for (auto &q : problems)
		if (int code = Run(q).run())
			return code;
	return 0;
}
