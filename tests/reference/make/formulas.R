# Formulas behind the "exact" reference values: likelihood, score, information, degrees of freedom, robust matrices, by dense matrices.
mat <- function(a) unname(as.matrix(a))
`%||%` <- function(a, b) if (is.null(a)) b else a
power <- function(a, p, tol = 1e-12) { e <- eigen((a + t(a)) / 2, symmetric = TRUE); k <- e$values > tol * max(e$values)
  e$vectors[, k, drop = FALSE] %*% (e$values[k]^p * t(e$vectors[, k, drop = FALSE])) }
# Rows by group with dV / d theta_k of theta = (vech T by columns, sigma2): V = sum of theta_k D_k.
split_rows <- function(y, X, Z, group, w = rep(1, length(y))) { q <- ncol(Z); K <- q * (q + 1) / 2
  basis <- lapply(seq_len(K), function(k) unvech(replace(rep(0, K), k, 1), q))
  lapply(split(seq_along(y), group, drop = TRUE), function(i) { z <- Z[i, , drop = FALSE]
    list(y = y[i], X = X[i, , drop = FALSE], Z = z, D = c(lapply(basis, function(b) z %*% b %*% t(z)), list(diag(1 / w[i], length(i))))) }) }
vech <- function(m) m[lower.tri(m, diag = TRUE)]
unvech <- function(v, q) { m <- matrix(0, q, q); m[lower.tri(m, diag = TRUE)] <- v; m + t(m) - diag(diag(m), q) }

# All at theta, V = sum of theta_k D_k: beta, Phi = (X'V^-1 X)^-1, score and both informations of the (restricted) likelihood,
# and the P_k, Q_kl, W of Kenward & Roger (1997). `groups`: independent blocks of rows with y, X and the list D.
at_theta <- function(groups, theta, reml) {
  p <- ncol(groups[[1]]$X); K <- length(theta)
  logdet <- 0; XX <- matrix(0, p, p); Xy <- rep(0, p); N <- 0
  for (j in seq_along(groups)) { g <- groups[[j]]
    V <- Reduce(`+`, Map(`*`, theta, g$D)); R <- chol(V); g$V <- V; g$Vi <- chol2inv(R); g$R <- R
    logdet <- logdet + 2 * sum(log(diag(R))); XV <- crossprod(g$X, g$Vi); XX <- XX + XV %*% g$X; Xy <- Xy + XV %*% g$y; N <- N + length(g$y); groups[[j]] <- g }
  Phi <- solve(XX); beta <- drop(Phi %*% Xy); quad <- 0
  P <- rep(list(matrix(0, p, p)), K); Q <- matrix(rep(list(matrix(0, p, p)), K * K), K, K)
  tr1 <- rep(0, K); tr2 <- matrix(0, K, K); rdr <- rep(0, K); XAr <- matrix(0, p, K); rdVdr <- matrix(0, K, K)
  for (j in seq_along(groups)) { g <- groups[[j]]; e <- drop(g$y - g$X %*% beta); r <- drop(g$Vi %*% e); quad <- quad + sum(e * r); groups[[j]]$e <- e
    D <- g$D; A <- lapply(D, function(d) g$Vi %*% d)
    XV <- crossprod(g$X, g$Vi); XVA <- lapply(D, function(d) XV %*% d %*% g$Vi); dr <- sapply(D, function(d) d %*% r)
    dr <- matrix(dr, ncol = K); rdVdr <- rdVdr + t(dr) %*% g$Vi %*% dr; XAr <- XAr + XV %*% dr; rdr <- rdr + drop(r %*% dr)
    for (k in 1:K) { tr1[k] <- tr1[k] + sum(diag(A[[k]])); P[[k]] <- P[[k]] - XVA[[k]] %*% g$X
      for (l in 1:K) { tr2[k, l] <- tr2[k, l] + sum(A[[k]] * t(A[[l]])); Q[[k, l]] <- Q[[k, l]] + XVA[[k]] %*% D[[l]] %*% t(XV) } } }
  trP <- matrix(0, K, K); tr1P <- sapply(1:K, function(k) tr1[k] + sum(diag(Phi %*% P[[k]])))
  for (k in 1:K) for (l in 1:K) trP[k, l] <- tr2[k, l] - 2 * sum(diag(Phi %*% Q[[k, l]])) + sum(diag(Phi %*% P[[k]] %*% Phi %*% P[[l]]))
  yPdPdPy <- rdVdr - t(XAr) %*% Phi %*% XAr
  score <- 0.5 * (rdr - if (reml) tr1P else tr1); observed <- yPdPdPy - 0.5 * (if (reml) trP else tr2); expected <- 0.5 * trP
  dev <- logdet + quad + (if (reml) log(det(XX)) + (N - p) * log(2 * pi) else N * log(2 * pi))
  W <- solve(expected); U <- matrix(0, p, p)
  for (k in 1:K) for (l in 1:K) U <- U + W[k, l] * (Q[[k, l]] - P[[k]] %*% Phi %*% P[[l]])
  PhiA <- Phi + 2 * Phi %*% U %*% Phi; PhiA <- (PhiA + t(PhiA)) / 2; attr(PhiA, "P") <- P; attr(PhiA, "W") <- W
  list(groups = groups, theta = theta, beta = beta, Phi = Phi, deviance = dev, score = score, observed = observed, expected = expected,
    P = P, W = W, PhiA = PhiA)
}
optimum <- function(groups, theta, reml, steps = 6) {
  for (i in 1:steps) { a <- at_theta(groups, theta, reml); if (max(abs(solve(a$observed, a$score)) / pmax(abs(theta), 1e-3)) < 1e-12) break
    theta <- theta + drop(solve(a$observed, a$score)) }
  at_theta(groups, theta, reml)
}
# CR0, CR1, CR2 (Pustejovsky & Tipton 2018) and the moments of CR2 under the working model. `whitened`: the symmetric root is taken of
# I - H in the metric of V, A = D'(I - D'^-1 X Phi X' D^-1)^(-1/2) D'^-1 with V = D'D, where clubSandwich takes A = D'(D (V - X Phi X') D')^(-1/2) D.
robust <- function(a, type, whitened = FALSE) {
  J <- length(a$groups); p <- length(a$beta)
  est <- lapply(a$groups, function(g) { A <- if (type != "CR2") diag(length(g$y)) else { D <- g$R; H <- g$X %*% a$Phi %*% t(g$X)
      if (whitened) { Di <- solve(D); t(D) %*% power(diag(nrow(D)) - t(Di) %*% H %*% Di, -1/2) %*% t(Di) } else t(D) %*% power(D %*% (g$V - H) %*% t(D), -1/2) %*% D }
    a$Phi %*% t(g$X) %*% g$Vi %*% A })
  if (type == "CR1") est <- lapply(est, function(s) s * sqrt(J / (J - 1)))
  u <- sapply(seq_len(J), function(j) est[[j]] %*% a$groups[[j]]$e); v <- matrix(u, nrow = p); v <- v %*% t(v)
  # Cov(G_i e_i, G_j e_j) = (i = j) G_j V_j G_j' - G_i X_i Phi X_j' G_j'
  own <- lapply(seq_len(J), function(j) est[[j]] %*% a$groups[[j]]$V %*% t(est[[j]])); GX <- lapply(seq_len(J), function(j) est[[j]] %*% a$groups[[j]]$X)
  list(vcov = v, own = own, GX = GX, Phi = a$Phi)
}
moments <- function(r, C) { C <- rbind(C); q <- nrow(C); J <- length(r$own); h <- t(chol(r$Phi))
  Om <- Reduce(`+`, lapply(1:J, function(j) C %*% (r$own[[j]] - r$GX[[j]] %*% r$Phi %*% t(r$GX[[j]])) %*% t(C)))
  B <- power(Om, -1/2) %*% C; g <- lapply(r$GX, function(m) B %*% m %*% h); own <- lapply(r$own, function(m) B %*% m %*% t(B))
  Pst <- function(s, t) { m <- -do.call(rbind, lapply(g, function(x) x[s, ])) %*% t(do.call(rbind, lapply(g, function(x) x[t, ]))); diag(m) <- diag(m) + sapply(own, function(o) o[s, t]); m }
  total <- 0; for (s in 1:q) for (t in 1:q) { a <- Pst(s, t); total <- total + sum(Pst(s, s) * Pst(t, t)) + sum(a * t(a)) }
  list(q = q, nu = q * (q + 1) / total) }
coef_df <- function(r) sapply(seq_len(nrow(r$vcov)), function(k) moments(r, replace(rep(0, nrow(r$vcov)), k, 1))$nu)
htz <- function(r, C, beta) { m <- moments(r, C); Q <- drop(t(C %*% beta) %*% solve(C %*% r$vcov %*% t(C), C %*% beta)); df <- m$nu - m$q + 1
  f <- df / m$nu * Q / m$q; list(nu = m$nu, F = f, df_num = m$q, df_denom = df, p = pf(f, m$q, df, lower.tail = FALSE)) }
# Satterthwaite with the observed information of (T, sigma2), as lmerTest; rows of L made independent by the eigenvectors of L Phi L'
satterthwaite <- function(a, L, information = a$observed) { L <- rbind(L); e <- eigen(L %*% a$Phi %*% t(L)); PL <- t(e$vectors) %*% L; IV <- solve(information)
  # d Phi / d theta_k = Phi X'V^-1 dV_k V^-1 X Phi = -Phi P_k Phi
  nu <- sapply(seq_len(nrow(PL)), function(m) { g <- sapply(a$P, function(Pk) -drop(PL[m, ] %*% a$Phi %*% Pk %*% a$Phi %*% PL[m, ])); 2 * e$values[m]^2 / drop(g %*% IV %*% g) })
  q <- nrow(L); f <- sum(drop(PL %*% a$beta)^2 / e$values) / q; df <- if (q == 1) nu else lmerTest:::get_Fstat_ddf(nu, tol = 1e-8)
  list(F = f, NumDF = q, DenDF = df, p = pf(f, q, df, lower.tail = FALSE), df_of_rows = nu) }
kenward_roger <- function(a, L) { k <- pbkrtest:::.KR_adjust(a$PhiA, a$Phi, rbind(L), a$beta, 0 * a$beta)
  list(F = k$Fstat, NumDF = k$ndf, DenDF = k$ddf, p = k$p.value, F_scaling = k$F.scaling, F_unscaled = k$FstatU, A1 = unname(k$aux["A1"]), A2 = unname(k$aux["A2"])) }
exact_block <- function(a, L2, L1, reml) {
  p <- length(a$beta); unit <- function(k) replace(rep(0, p), k, 1)
  c0 <- robust(a, "CR0"); c1 <- robust(a, "CR1"); c2 <- robust(a, "CR2"); cw <- robust(a, "CR2", TRUE)
  one <- function(se, df) { t <- sum(L1 * a$beta) / se; list(estimate = sum(L1 * a$beta), se = se, df = df, statistic = t, p = 2 * pt(-abs(t), df)) }
  s1 <- satterthwaite(a, L1)
  x <- list(note = "Newton to score = 0, analytic derivatives; theta = (vech T by columns, sigma2); information and score of theta",
    theta = a$theta, score = a$score, deviance = a$deviance, estimate = unname(a$beta), vcov = mat(a$Phi), information_observed = a$observed,
    satterthwaite_df = sapply(1:p, function(k) satterthwaite(a, unit(k))$DenDF), satterthwaite_contrast = one(sqrt(drop(L1 %*% a$Phi %*% L1)), s1$DenDF), satterthwaite_joint = satterthwaite(a, L2))
  if (reml) { df1 <- kenward_roger(a, L1)$DenDF
    x <- c(x, list(information_expected = a$expected, satterthwaite_df_expected_information = sapply(1:p, function(k) satterthwaite(a, unit(k), a$expected)$DenDF),
      kenward_roger_vcov = mat(a$PhiA), kenward_roger_df = sapply(1:p, function(k) kenward_roger(a, unit(k))$DenDF),
      kenward_roger_contrast = one(sqrt(drop(L1 %*% a$PhiA %*% L1)), df1), kenward_roger_joint = kenward_roger(a, L2))) }
  c(x, list(CR0 = c0$vcov, CR1 = c1$vcov, CR2 = c2$vcov, CR0_df = coef_df(c0), CR1_df = coef_df(c1), CR2_df = coef_df(c2), CR2_contrast = { m <- moments(c2, L1); one(sqrt(drop(L1 %*% c2$vcov %*% L1)), m$nu) },
    CR0_HTZ = htz(c0, L2, a$beta), CR1_HTZ = htz(c1, L2, a$beta), CR2_HTZ = htz(c2, L2, a$beta), CR2_whitened = cw$vcov, CR2_whitened_df = coef_df(cw), CR2_whitened_HTZ = htz(cw, L2, a$beta)))
}
